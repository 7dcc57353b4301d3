"""Level 1: what was asked for. No torch, so `--help` is instant."""
