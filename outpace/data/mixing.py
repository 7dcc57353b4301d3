"""Which dataset comes next when several are mixed by weight: a fixed sequence of slots, repeated.

The shares are exact, and at every position the number of samples taken from a dataset differs from
its share of all samples by less than one. That is the chairman assignment problem (Tijdeman 1980,
"The chairman assignment problem", Discrete Mathematics 32): the k-th sample of a dataset of share w
may come from slot floor(k / w) on, has to come before slot ceil((k + 1) / w), and taking the
earliest deadline first meets them all (Baruah et al. 1996, "Proportionate progress", Algorithmica
15).
"""

import functools
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from outpace.data.arrays import Int64

MOST_SLOTS = 1 << 16
"""Longest sequence. Weights of up to four decimals are exact; others are rounded to multiples of
1/65,536."""


class Shares:
    """The slots of datasets with the given weights, which need not add up to 1."""

    def __init__(self, weights: Sequence[Fraction]) -> None:
        counts = slots(weights)
        self.period = sum(counts)
        self.exact = [Fraction(count, self.period) for count in counts]
        """Share of each dataset, after rounding."""
        self._counts = np.array(counts, np.int64)
        self._source = sequence(tuple(counts))  # (period,)
        self._rank = np.empty(self.period, np.int64)  # place of a slot among its dataset's
        for source, count in enumerate(counts):
            self._rank[self._source == source] = np.arange(count)

    def turns(self, positions: Int64) -> tuple[Int64, Int64]:
        """Dataset of each position, and how many samples of it came before."""
        period, slot = np.divmod(positions, self.period)
        source = self._source[slot]
        return source, period * self._counts[source] + self._rank[slot]


def slots(weights: Sequence[Fraction]) -> list[int]:
    """Slots of each dataset in one period: the exact weights if they fit in MOST_SLOTS, else
    rounded by largest remainder, at least one each."""
    assert weights and min(weights) > 0, weights
    shares = [weight / sum(weights, Fraction(0)) for weight in weights]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= MOST_SLOTS:
        return [int(share * period) for share in shares]
    counts = [max(1, math.floor(share * MOST_SLOTS)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda s: counts[s] - shares[s] * MOST_SLOTS)
    for s in by_remainder[: max(0, MOST_SLOTS - sum(counts))]:
        counts[s] += 1
    return counts


@functools.lru_cache(maxsize=8)
def sequence(counts: tuple[int, ...]) -> Int64:
    """The dataset of each slot, earliest deadline first."""
    period = sum(counts)
    released: list[list[int]] = [[] for _ in range(period + 1)]
    released[0] = list(range(len(counts)))
    done = [0] * len(counts)
    ready: list[tuple[int, int]] = []
    out = np.empty(period, np.int64)
    for slot in range(period):
        for source in released[slot]:
            deadline = -(-(done[source] + 1) * period // counts[source])
            heapq.heappush(ready, (deadline, source))
        _, source = heapq.heappop(ready)
        out[slot] = source
        done[source] += 1
        if done[source] < counts[source]:
            released[max(slot + 1, done[source] * period // counts[source])].append(source)
    return out
