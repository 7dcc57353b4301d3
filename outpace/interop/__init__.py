"""Level 4: models from and for other programs."""
