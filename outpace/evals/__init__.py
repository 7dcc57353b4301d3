"""Evaluation. It never touches the random numbers of training."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from outpace.config.presets import GPT2Shape

KeepGoing = Callable[[float], bool]
"""Called between batches with the share of the work done; False ends the evaluation early, without
a result."""
Visible = torch.Tensor | Sequence[torch.Tensor]
"""Which tokens a token sees: a mask (B, T, T); or, where one row holds texts end to end, a mask
(1, T_i, T_i) for each text."""


class LanguageModel(Protocol):
    """What evaluation needs from a model."""

    shape: GPT2Shape

    def hidden(
        self, idx: torch.Tensor, *, positions: torch.Tensor, visible: Visible
    ) -> torch.Tensor:
        """idx, positions (B, T) -> (B, T, C)."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, C) -> (N, V)."""
        ...


def always(done: float) -> bool:
    return True
