"""Getting an ImageBuilder from a mirror, verified."""
