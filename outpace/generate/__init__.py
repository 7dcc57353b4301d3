"""Level 4: text from a model."""
