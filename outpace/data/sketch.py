"""MinHash sketches of documents, to find near duplicates, including parts of longer documents.

The words of a text (lower-cased runs of letters and digits) are taken five at a time, and each five
hashed to 64 bits. The sketch is all hashes below 2^64 / SCALE (a fixed share of any text,
FracMinHash: Irber et al. 2022, doi 10.1101/2022.01.11.475838), or the LOWEST smallest ones
(bottom-k MinHash: Broder 1997) if there are fewer, as in short texts. The share of a document's
sketch that was seen before estimates how much of it is already in the corpus, in one document or in
many, such as a novel in chapters. The usual form, whole-document MinHash with banded LSH, detects
only documents of about the same length. So does this for short ones: an excerpt shares with the
longer text the hashes below the cut, but few of its LOWEST, and is found from some 800 words on
(one in ten of 400 words, every second of 600; measured on novels).
"""

from collections.abc import Iterable
from functools import cache

import numpy as np

from outpace.data.arrays import Int64, UInt64
from outpace.data.seen import Seen, sorted_set

WORDS = 5
SCALE = 64
LOWEST = 16
THRESHOLD = 0.6
"""A document is a near duplicate if this share of its sketch was seen before."""
BEGINNING = 60
"""Characters of a document shown in the list of near duplicates."""
AT_ONCE = 1 << 18
"""Bytes of text sketched at once; temporary arrays take some 60 times as much."""

_FOLD = np.zeros(256, np.uint8)
"""Maps bytes of words to lower case, and all others to 0."""
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
    """The sketch of a UTF-8 text, as sorted hashes."""
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
    """One hash per word. A word cut by the end of `data` counts as two."""
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
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), which spreads every bit over all
    others."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


class NearDuplicates:
    """Measures which share of a document's sketch was in the documents before it."""

    def __init__(self, hashes: UInt64 | None = None) -> None:
        self._seen = Seen(hashes)

    def shares(self, sketches: UInt64, sizes: Int64, asked: Iterable[int]) -> dict[int, float]:
        """The share of each document `asked` about, by number; 0 for a text of fewer than five
        words, which has no sketch. Those below THRESHOLD are added. `sketches` are those of some
        documents, joined, to be looked up together, and `sizes` their lengths."""
        ends, known = np.cumsum(sizes), self._seen.contains(sketches).tolist()
        found: dict[int, float] = {}
        new: set[int] = set()
        for n in asked:
            part = slice(int(ends[n] - sizes[n]), int(ends[n]))
            sketch = sketches[part].tolist()
            fresh = [h for h, is_known in zip(sketch, known[part], strict=True) if not is_known]
            unseen = sum(h not in new for h in fresh)
            found[n] = (len(sketch) - unseen) / len(sketch) if sketch else 0.0
            if found[n] < THRESHOLD:
                new.update(fresh)
        self._seen.add(np.fromiter(new, np.uint64, len(new)))
        return found
