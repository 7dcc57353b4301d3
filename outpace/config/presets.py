"""The four GPT-2 sizes, and the shape of any GPT-2.

Shapes from Radford et al. 2019, table 2 (the parameter counts there are wrong; these are counted).
Learning rates from Brown et al. 2020 (GPT-3), table 2.1, of the nearest size, at 0.5M tokens per
step (1M for the largest).
"""

from dataclasses import dataclass

from outpace.core.errors import UsageError
from outpace.core.registry import nearest

GPT2_CONTEXT = 1024
"""Positions of the published checkpoints, in tokens."""
GPT2_VOCAB = 50257
"""Tokens of GPT-2's vocabulary."""

REFERENCE_TOKENS_PER_STEP = 524_288
"""2^19 tokens, the batch that the learning rates below belong to (GPT-3's 0.5M)."""

VOCAB_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this: 50257 -> 50304, aligned for tensor cores."""


@dataclass(frozen=True)
class GPT2Shape:
    """Everything that decides the shape of the parameters, and dropout."""

    n_layer: int
    n_head: int
    n_embd: int
    context: int
    vocab_size: int
    """Ids that can be predicted; the rows above it, up to `padded_vocab_size`, never are."""
    dropout: float = 0.0
    vocab_multiple: int = VOCAB_MULTIPLE
    """What the vocabulary is padded to a multiple of."""

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class Size:
    """A published size: layers, heads, channels, and the learning rate it is trained with."""

    n_layer: int
    n_head: int
    n_embd: int
    lr: float

    def shape(self, context: int = GPT2_CONTEXT, vocab_size: int = GPT2_VOCAB) -> GPT2Shape:
        """Of a model of this size, without dropout."""
        return GPT2Shape(self.n_layer, self.n_head, self.n_embd, context, vocab_size)


SIZES = {
    "124M": Size(12, 12, 768, 6e-4),
    "355M": Size(24, 16, 1024, 3e-4),
    "774M": Size(36, 20, 1280, 2.5e-4),
    "1558M": Size(48, 25, 1600, 2e-4),
}
ALIASES = {"350M": "355M"}


def size(name: str) -> Size:
    """The preset of that name; UsageError names the nearest."""
    key = ALIASES.get(name, name)
    if key not in SIZES:
        raise UsageError(
            "MODEL-SIZE",
            f"no model size {name!r}{nearest(name, SIZES)}",
            do=f"choose one of {', '.join(SIZES)}, or set --n_layer, --n_head and --n_embd",
        )
    return SIZES[key]
