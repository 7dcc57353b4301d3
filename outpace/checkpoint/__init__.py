"""Level 4: checkpoints that are either whole and verified or do not exist."""
