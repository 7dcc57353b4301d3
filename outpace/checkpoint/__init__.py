"""Checkpoints that are either whole and verified or do not exist."""
