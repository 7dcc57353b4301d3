"""Level 3: documents to shards, shards to batches."""
