"""Samples that begin at the start of a document, instead of at every T-th token.

A sample starts at a document and takes the documents that follow until it is full, cutting the
last; the next sample starts at the first document after that. What is cut off is not read.
modded-nanogpt's training loader cuts its rows this way, in `BOSFinder`
(KellerJordan/modded-nanogpt, train_gpt_medium.py).
"""

from collections.abc import Sequence

import numpy as np

from outpace.data.arrays import Int64
from outpace.data.mixture import Mixture
from outpace.data.shards import Dataset


def document_starts(dataset: Dataset, split: str) -> Int64:
    """Position of each document's first token in the split's stream, from the lengths beside the
    shards. DataError if they do not add up to the shards' tokens."""
    lengths = dataset.document_lengths(split)
    return np.cumsum(lengths) - lengths


def aligned_samples(starts: Int64, tokens: int, context: int) -> Int64:
    """Start positions of samples of `context` inputs and one more target; each sample lies inside
    the stream, and no two share an input."""
    following = np.searchsorted(starts, starts + context)
    last = np.searchsorted(starts, tokens - context)  # one past the last with room for its target
    chosen, at = [], 0
    while at < last:
        chosen.append(at)
        at = int(following[at])
    return starts[np.array(chosen, np.int64)]


def read_tokens(mixture: Mixture, context: int) -> list[int]:
    """Training tokens of each dataset that its aligned samples read in an epoch."""
    return [
        context * len(aligned_samples(document_starts(d, "train"), d.tokens("train"), context))
        for d in mixture.datasets
    ]


def unread(mixture: Mixture, read: Sequence[int]) -> float:
    """Share of the training tokens that is not read; datasets weigh by their share of the
    samples."""
    of_each = zip(mixture.datasets, mixture.shares, read, strict=True)
    return sum(float(share) * (1 - n / max(1, d.tokens("train"))) for d, share, n in of_each)
