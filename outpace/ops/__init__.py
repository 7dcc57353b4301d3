"""Pure tensor functions. Letters: B batch, T time, H heads, D head dim, V vocabulary."""
