"""A set of 64-bit hashes in 8 bytes each, for as many as a corpus has documents."""

import numpy as np

from outpace.data.arrays import Bools, UInt64

RECENT = 1 << 16


def sorted_set(hashes: UInt64) -> UInt64:
    """Same as numpy.unique, which is far slower on hashes (NumPy 2.4)."""
    hashes = np.sort(hashes)
    distinct: UInt64 = hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]]
    return distinct


class Seen:
    """Recent hashes are in a Python set, older ones in sorted arrays, each at least four times as
    long as the next, so that a lookup takes a few binary searches and merging is cheap."""

    def __init__(self, hashes: UInt64 | None = None) -> None:
        self._recent: set[int] = set()
        self._sorted: list[UInt64] = [] if hashes is None else [sorted_set(hashes)]

    def contains(self, hashes: UInt64) -> Bools:
        """For each hash, whether it was added before. They are looked up in ascending order, so
        that most of what a search reads is in the processor's cache from the one before."""
        order = np.argsort(hashes)
        ascending = hashes[order]
        found = np.array([h in self._recent for h in ascending.tolist()], bool)
        for known in self._sorted:
            at = np.searchsorted(known, ascending)
            found |= known[np.minimum(at, len(known) - 1)] == ascending if len(known) else False
        in_place = np.empty_like(found)
        in_place[order] = found
        return in_place

    def add(self, hashes: UInt64) -> None:
        self._recent.update(hashes.tolist())
        if len(self._recent) >= RECENT:
            run = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._recent.clear()
            while self._sorted and len(self._sorted[-1]) < 4 * len(run):
                run = np.concatenate([self._sorted.pop(), run])
            run.sort()
            self._sorted.append(run)

    def first_of_each(self, hashes: UInt64) -> Bools:
        """For each hash, whether it is new, and the first of its kind in this array; all are
        added."""
        known = self.contains(hashes)
        order = np.argsort(hashes, kind="stable")
        first = np.zeros(len(hashes), bool)
        first[order[np.concatenate([[True], np.diff(hashes[order]) != 0])[: len(hashes)]]] = True
        fresh = first & ~known
        self.add(hashes[fresh])
        return fresh
