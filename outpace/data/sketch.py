"""MinHash sketches of documents, to find near duplicates, also of parts in wholes.

The words of a text (letters and digits in lower case, whatever is between them) are taken five
at a time, each five hashed to 64 bits. The sketch is the hashes below 2^64 / SCALE (a fixed share
of any text, FracMinHash: Irber et al. 2022, doi 10.1101/2022.01.11.475838) and the LOWEST smallest
ones (bottom-k MinHash: Broder 1997), which alone speak for short texts. How much of a document's
sketch was seen before estimates how much of the document is in the corpus already, were it in
one document or, as a novel in chapters, in many. Whole-document MinHash with banded LSH, the usual
form, sees only documents of about the same length. So does this for short ones: an excerpt of a
longer text shares hashes below the cut with it and few of its LOWEST, and is found from some 800
words on (of 400 words every tenth, of 600 every second; measured on novels).
"""

from functools import cache

import numpy as np

from outpace.data.arrays import UInt64
from outpace.data.seen import Seen, sorted_set

WORDS = 5
SCALE = 64
LOWEST = 16
THRESHOLD = 0.6
"""A document is a near duplicate when this share of its sketch was seen."""
BEGINNING = 60
"""Characters of a document that the list of near duplicates shows."""
AT_ONCE = 1 << 18
"""Bytes of text sketched at once: temporary arrays take some 60 times that."""

_FOLD = np.zeros(256, np.uint8)
"""Bytes of words to their lower case; 0 for what is no part of a word."""
_FOLD[ord("0") : ord("9") + 1] = np.arange(ord("0"), ord("9") + 1)
_FOLD[ord("a") : ord("z") + 1] = np.arange(ord("a"), ord("z") + 1)
_FOLD[ord("A") : ord("Z") + 1] = np.arange(ord("a"), ord("z") + 1)
_FOLD[128:] = np.arange(128, 256)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = pow(int(_ODD), -1, 1 << 64)


@cache
def _powers(base: int) -> UInt64:
    """base^0, base^1, ... modulo 2^64."""
    factors = np.full(AT_ONCE + 1, base, np.uint64)
    factors[0] = 1
    return factors.cumprod(dtype=np.uint64)


def sketch(data: bytes) -> UInt64:
    """Sorted hashes of a text in UTF-8."""
    hashes: list[UInt64] = []
    tail = np.zeros(0, np.uint64)
    for at in range(0, len(data), AT_ONCE):
        words = np.concatenate([tail, word_hashes(data[at : at + AT_ONCE])])
        hashes.append(_shingles(words))
        tail = words[len(words) - min(len(words), WORDS - 1) :]
    every = np.concatenate([np.zeros(0, np.uint64), *hashes])
    share = sorted_set(every[every < np.uint64(2**64 // SCALE)])
    return share if len(share) >= LOWEST else sorted_set(every)[:LOWEST]


def word_hashes(data: bytes) -> UInt64:
    """A hash a word. A word that the end cuts off counts as two."""
    folded = _FOLD[np.frombuffer(data, np.uint8)]
    inside = np.concatenate([[False], folded != 0, [False]])
    borders = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = borders[0::2], borders[1::2]
    # Prefix sums of byte times power; a word is a difference, shifted back by the inverse power.
    sums = np.zeros(len(folded) + 1, np.uint64)
    np.cumsum(
        (folded.astype(np.uint64) + np.uint64(1)) * _powers(int(_ODD))[: len(folded)], out=sums[1:]
    )
    return _mixed((sums[ends] - sums[starts]) * _powers(_INVERSE)[starts])


def _shingles(words: UInt64) -> UInt64:
    count = max(0, len(words) - WORDS + 1)
    total = np.zeros(count, np.uint64)
    for n in range(WORDS):
        total = total * _ODD + words[n : n + count]
    return _mixed(total)


def _mixed(h: UInt64) -> UInt64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): spreads every bit over all."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


class NearDuplicates:
    """What share of each document's sketch is in those before it."""

    def __init__(self, hashes: UInt64 | None = None) -> None:
        self._seen = Seen(hashes)

    def share(self, sketch: UInt64) -> float:
        """Between 0 and 1; 0 for a text of fewer than five words, of which nothing is known."""
        return float(self._seen.contains(sketch).mean()) if len(sketch) else 0.0

    def add(self, sketch: UInt64) -> None:
        self._seen.add(sketch)
