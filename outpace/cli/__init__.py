"""One file per command. Heavy imports stay inside `run`, so `--help` is instant."""
