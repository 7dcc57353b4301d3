"""Padding and cropping the token embedding: files hold the bare vocabulary or one padded to any
multiple, outpace's model pads it with zeros to its own.
"""

import torch

from outpace.config.presets import GPT2Shape


def padded(wte: torch.Tensor, shape: GPT2Shape) -> torch.Tensor:
    """wte (at least vocab_size, C) -> (padded_vocab_size, C), zero beyond the vocabulary."""
    wte = cropped(wte, shape)
    rows = shape.padded_vocab_size - shape.vocab_size
    return torch.cat((wte, wte.new_zeros(rows, wte.size(1))))


def cropped(wte: torch.Tensor, shape: GPT2Shape) -> torch.Tensor:
    """wte (at least vocab_size, C) -> (vocab_size, C)."""
    return wte[: shape.vocab_size]
