"""The unigram entropy: the loss of a model that knows only how often each token occurs in the
training text. A model that has learned anything is below it.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from outpace.data.shard_file import HEADER_BYTES, ShardFile

STRETCH = 1 << 16
"""Length of a run of consecutive tokens that is counted."""
MOST_COUNTED = 1 << 24
"""Counting all tokens would be a twentieth of a preparation's work. Of more text, evenly spaced
runs are counted, whose entropy is less than 0.01 below that of the whole."""


def unigram_entropy(folder: Path, shards: Iterable[ShardFile], vocab_size: int) -> float:
    """In nats per token; above `MOST_COUNTED` tokens, from every n-th `STRETCH`."""
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
