"""One view per engine: what its templates are given."""
