"""What is stale and why, making it, lock files, many profiles at once."""
