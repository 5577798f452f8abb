"""Profile and templates to a tree of files in memory, and that tree on disk."""
