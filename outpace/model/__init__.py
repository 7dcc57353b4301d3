"""Level 3: GPT-2, its cache and its cost."""
