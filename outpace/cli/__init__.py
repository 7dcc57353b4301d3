"""Level 7: one file a command. Heavy imports stay inside `run`, so `--help` is instant."""
