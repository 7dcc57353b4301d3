"""Level 5: the training run."""
