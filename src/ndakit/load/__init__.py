"""YAML to Profile: nodes with places, inheritance, validation, messages, secrets, JSON Schema, the reference."""
