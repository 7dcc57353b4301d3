"""Level 4: reading other programs' model files, and writing them."""
