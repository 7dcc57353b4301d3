"""Samples that begin at the start of a document, instead of at every T-th token.

A sample starts at a document and takes the documents that follow until it is full, cutting the
last; the next sample starts at the first document after that. What is cut off is not read.
modded-nanogpt's training loader cuts its rows this way, in `BOSFinder`
(KellerJordan/modded-nanogpt, train_gpt_medium.py).
"""

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


def unread(mixture: Mixture, context: int) -> float:
    """Share of the training tokens that aligned samples do not read; datasets weigh by their share
    of the samples."""
    total = 0.0
    for dataset, share in zip(mixture.datasets, mixture.shares, strict=True):
        tokens = max(1, dataset.tokens("train"))
        taken = len(aligned_samples(document_starts(dataset, "train"), tokens, context))
        total += float(share) * (1 - taken * context / tokens)
    return total
