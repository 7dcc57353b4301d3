"""Which tokens each sample has: a pure function of (seed, spec, position).

A dataset is one stream of tokens. Its sample number `turn` reads `context + 1` tokens from

    start = phase(epoch) + context * block,   epoch, i = divmod(turn, blocks),
    block = permutation(i)

where the permutation of each epoch is a Feistel network over [0, blocks), and the phase shifts the
windows' borders between epochs. With several datasets, `mixing.py` decides which one a position
belongs to, and its turn there. Nothing is stored, no sample repeats within an epoch of its dataset,
and neither the number of processes nor the micro-batch size changes which samples a step sees.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from outpace.data.arrays import Int64, UInt64
from outpace.data.mixing import Shares

ROUNDS = 6
VERSION = 2
"""Version of the order, part of a run's identity: a run never changes it."""


@dataclass(frozen=True)
class OrderSpec:
    """How datasets are cut into samples and shuffled."""

    context: int
    """Tokens of a sample (T); one more is read, the last target."""
    seed: int
    chunk: int = 1
    """Consecutive windows that stay together when shuffled."""
    phase: bool = True
    """Whether the windows' borders shift between epochs."""
    bos_aligned: bool = False
    """Samples begin where documents do (`documents.py`); they have no phase."""


@dataclass(frozen=True)
class Source:
    """What the order needs to know about a dataset."""

    tokens: int
    weight: Fraction = Fraction(1)
    starts: Int64 | None = None
    """Where its samples begin, if not at multiples of the context."""


@dataclass(frozen=True)
class Samples:
    """Where samples are; each array has one entry per sample."""

    source: Int64
    epoch: Int64
    start: Int64
    """Offset of the first token in the source's stream."""

    def __getitem__(self, part: slice) -> "Samples":
        return Samples(self.source[part], self.epoch[part], self.start[part])


class Order:
    """The order of samples over one or more sources."""

    def __init__(self, sources: Sequence[Source], spec: OrderSpec) -> None:
        self.spec, self._starts = spec, [source.starts for source in sources]
        # The largest phase is context - 1, and the last target lies one token past the window.
        spare = spec.context if spec.phase else 1
        self.blocks = np.array(
            [
                max(0, s.tokens - spare) // spec.context if s.starts is None else len(s.starts)
                for s in sources
            ],
            np.int64,
        )
        """Samples in an epoch of each source."""
        self.shares = Shares([source.weight for source in sources])
        self._chunks = np.maximum(1, self.blocks // spec.chunk)
        self._sides = np.array([sides(int(n)) for n in self._chunks], np.uint64).T

    def samples(self, first: int, count: int) -> Samples:
        """The samples at positions [first, first + count); count is at least 1."""
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, positions: Int64) -> Samples:
        """The samples at these positions, at least one. The overhead of a call is about the cost of
        a thousand samples."""
        source, turn = self.shares.turns(positions)
        epoch, place = np.divmod(turn, self.blocks[source])
        pairs, which = np.unique(epoch * len(self.blocks) + source, return_inverse=True)
        of_pairs = [divmod(int(pair), len(self.blocks))[::-1] for pair in pairs]  # source, epoch
        keys = np.stack([_keys(self.spec.seed, *pair) for pair in of_pairs], axis=1)
        block = self._permuted(place, source, np.take(keys, which, axis=1))
        phases = np.array([self.phase(*pair) for pair in of_pairs])
        start = block * self.spec.context + phases[which]
        for number, starts in enumerate(self._starts):
            if starts is not None:
                chosen = source == number
                start[chosen] = starts[block[chosen]]
        return Samples(source, epoch, start)

    def phase(self, source: int, epoch: int) -> int:
        """Tokens by which an epoch's windows are shifted, in [0, context); 0 in the first."""
        if not epoch or not self.spec.phase or self._starts[source] is not None:
            return 0
        return int(_keys(self.spec.seed, source, epoch)[ROUNDS] % np.uint64(self.spec.context))

    def _permuted(self, place: Int64, source: Int64, keys: UInt64) -> Int64:
        """The block at each place of an epoch. Whole chunks are permuted; the blocks left over come
        last. A rotation makes other blocks left over in each epoch."""
        chunk, blocks = self.spec.chunk, self.blocks[source]
        if chunk == 1:
            return permute(place, blocks, self._sides[:, source], keys)
        number, inside = np.divmod(place, chunk)
        whole = number < blocks // chunk
        out, chosen = place.copy(), source[whole]
        moved = permute(number[whole], self._chunks[chosen], self._sides[:, chosen], keys[:, whole])
        out[whole] = moved * chunk + inside[whole]
        rotation = (keys[ROUNDS + 1] % blocks.astype(np.uint64)).astype(np.int64)
        turned: Int64 = (out + rotation) % blocks
        return turned


def permute(index: Int64, size: Int64, side: UInt64, keys: UInt64) -> Int64:
    """Permute each index (n,) within [0, size), by the permutation that its keys (at least ROUNDS,
    n) choose; `side` (2, n) holds `sides` of each size.

    A Feistel network over a rectangle with these sides, whose area is hardly larger than the size.
    A result beyond the size is permuted again until it is inside, "cycle walking" (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    out = _rounds(index.astype(np.uint64), side, keys).view(np.int64)
    todo = np.flatnonzero(out >= size)
    while len(todo):
        out[todo] = _rounds(out[todo].view(np.uint64), side[:, todo], keys[:, todo]).view(np.int64)
        todo = todo[out[todo] >= size[todo]]
    return out


def _rounds(x: UInt64, side: UInt64, keys: UInt64) -> UInt64:
    a, b = side
    left, right = np.divmod(x, b)
    for key in keys[:ROUNDS]:
        mixed = right + key
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
        mixed >>= np.uint64(29)  # keep the high bits, leaving room for the sum
        mixed += left
        mixed %= a
        left, right, a, b = right, mixed, b, a
    out: UInt64 = left * b + right
    return out


def sides(size: int) -> tuple[int, int]:
    """The sides, as equal as possible, of a rectangle with at least `size` places."""
    a = math.isqrt(max(1, size) - 1) + 1
    return a, -(-max(1, size) // a)


@functools.lru_cache(maxsize=1024)
def _keys(seed: int, source: int, epoch: int) -> UInt64:
    digest = hashlib.blake2b(f"outpace-order-{VERSION}:{seed}:{source}:{epoch}".encode()).digest()
    return np.frombuffer(digest, "<u8")
