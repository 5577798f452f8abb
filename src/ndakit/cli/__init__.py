"""The tasks: one file per command, and what they show meanwhile."""
