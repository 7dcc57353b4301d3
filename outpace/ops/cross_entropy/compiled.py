"""Head and loss compiled: with the model where that is compiled, else by themselves. Inductor
fuses the chain of operators; logits and their gradient are kept, 2 x 2 bytes a logit in bf16.
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
    """See the table."""
    if torch.compiler.is_compiling():
        return eager.loss_sum(hidden, weight, targets, vocab_size, fp8=fp8)
    if not torch.is_grad_enabled():
        # An evaluation, whose model is not compiled: each of its shapes would be a compilation.
        return chunked.loss_sum(hidden, weight, targets, vocab_size, fp8=fp8)
    return _compiled()(hidden, weight, targets, vocab_size, fp8=fp8)


def why_not(
    device: torch.device, dtype: torch.dtype, compiled: bool, fp8: bool = False
) -> str | None:
    return None


@functools.cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(eager.loss_sum, dynamic=False)
