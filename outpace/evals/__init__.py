"""Level 4: what a model is worth. Evaluation never touches the training's random numbers."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from outpace.config.presets import GPT2Shape

KeepGoing = Callable[[float], bool]
"""Asked between batches, with the share of the work that is done; False ends an evaluation early,
without a result."""
Visible = torch.Tensor | Sequence[torch.Tensor]
"""Which tokens a token sees, (B, T, T); or, of the texts that one row holds end to end, a mask
(1, T_i, T_i) each."""


class LanguageModel(Protocol):
    """What evaluation needs of a model."""

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
