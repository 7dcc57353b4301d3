"""What was asked for. No torch, so `--help` is instant."""
