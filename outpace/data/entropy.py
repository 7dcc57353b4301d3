"""The unigram entropy: the loss of a model that knows how often each token occurs in the training
text, and nothing else. A model that has learned anything is below it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from outpace.data.shard_file import HEADER_BYTES, ShardFile

STRETCH = 1 << 16
"""Tokens that are counted without a gap."""
MOST_COUNTED = 1 << 24
"""Counting all tokens would be a twentieth of a preparation's work. What is counted of more text
lies evenly over all of it, and its entropy is less than 0.01 below that of the whole."""


def unigram_entropy(folder: Path, shards: Iterable[ShardFile], vocab_size: int) -> float:
    """In nats per token; of more than `MOST_COUNTED` tokens, that of every n-th `STRETCH`."""
    train = [shard for shard in shards if shard.split == "train"]
    every = -(-sum(shard.tokens for shard in train) // MOST_COUNTED) * STRETCH
    counts = np.zeros(vocab_size, np.int64)
    for shard in train:
        with open(folder / shard.file, "rb") as f:
            for at in range(0, shard.tokens, every):
                f.seek(HEADER_BYTES + 2 * at)
                stretch = np.fromfile(f, "<u2", min(STRETCH, shard.tokens - at))
                counts += np.bincount(stretch, minlength=vocab_size)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
