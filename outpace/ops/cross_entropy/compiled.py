"""The eager head and loss, compiled: as part of the model if that is compiled, else on their own.
Inductor fuses the operators; logits and their gradient are kept, 2 x 2 bytes per logit in bf16.
"""

import functools
from collections.abc import Callable

import torch

from outpace.ops.cross_entropy import chunked, eager


def loss_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    *,
    fp8: bool = False,
) -> torch.Tensor:
    """See `ops/cross_entropy/__init__.py`."""
    if torch.compiler.is_compiling():
        return eager.loss_sum(hidden, weight, targets, vocab_size, fp8=fp8)
    if not torch.is_grad_enabled():
        # Evaluation has many shapes, each of which would be compiled.
        return chunked.loss_sum(hidden, weight, targets, vocab_size, fp8=fp8)
    return _compiled()(hidden, weight, targets, vocab_size, fp8=fp8)


def why_not(
    device: torch.device, dtype: torch.dtype, compiled: bool, fp8: bool = False
) -> str | None:
    return None


@functools.cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(eager.loss_sum, dynamic=False)
