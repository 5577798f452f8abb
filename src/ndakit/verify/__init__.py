"""What is claimed of a pair, trying it, and the report."""
