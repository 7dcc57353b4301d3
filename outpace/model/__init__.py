"""GPT-2, its cache and its cost."""
