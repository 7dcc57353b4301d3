"""Level 0: what every other package may use. Standard library and rich only, never torch."""
