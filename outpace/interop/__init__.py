"""Reading other programs' model files, and writing them."""
