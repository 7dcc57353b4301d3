"""Which window of the corpus each sample is: a pure function of (seed, position).

The corpus is one stream of tokens. Sample `position` reads `context + 1` tokens from

    start = phase(epoch) + context * block,   epoch, i = divmod(position, blocks),
    block = permutation(i)

where the permutation of each epoch is a Feistel network over [0, blocks) (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains": cycle walking), and the phase moves the windows' borders
between epochs. Nothing is stored, no sample repeats within an epoch, and neither the number of
processes nor the micro-batch changes which samples a step sees.
"""

import hashlib

import numpy as np
import numpy.typing as npt

ROUNDS = 6
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


class Order:
    """The order of samples over a stream of `tokens` tokens, cut into windows of `context`."""

    def __init__(self, tokens: int, context: int, seed: int) -> None:
        self.context, self.seed = context, seed
        # The largest phase is context - 1, and the last target lies one token past the window.
        self.blocks = max(0, (tokens - context) // context)

    def starts(self, first: int, count: int) -> Int64:
        """Token offsets of the samples [first, first + count)."""
        epochs, places = np.divmod(np.arange(first, first + count, dtype=np.int64), self.blocks)
        out = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            keys = self._keys(int(epoch))
            out[chosen] = permute(places[chosen], self.blocks, keys) * self.context
            out[chosen] += self.phase(int(epoch))
        return out

    def phase(self, epoch: int) -> int:
        """Tokens by which an epoch's windows are shifted, in [0, context); 0 in the first."""
        return int(self._keys(epoch)[ROUNDS] % np.uint64(self.context)) if epoch else 0

    def _keys(self, epoch: int) -> UInt64:
        digest = hashlib.blake2b(f"outpace-order-1:{self.seed}:{epoch}".encode()).digest()
        return np.frombuffer(digest, "<u8")


def permute(index: Int64, size: int, keys: UInt64) -> Int64:
    """Map `index`, values in [0, size), by a permutation of [0, size) chosen by `keys`."""
    half_bits = max(1, (int(size - 1).bit_length() + 1) // 2)
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    out = index.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):  # values that fall outside [0, size) walk on until they are inside
        left, right = out[todo] >> half, out[todo] & mask
        for key in keys[:ROUNDS]:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
            mixed *= np.uint64(0xD6E8FEB86659FD93)
            mixed ^= mixed >> np.uint64(29)
            left, right = right, (left ^ mixed) & mask
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)
