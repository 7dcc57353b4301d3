"""Documents to shards, shards to batches."""
