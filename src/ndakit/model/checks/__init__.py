"""Health checks of a profile: their types and keys."""
