"""Head and loss compiled: with the model where that is compiled, else by themselves. Inductor
fuses the chain of operators; logits and their gradient are kept, 2 x 2 bytes a logit in bf16.
"""

import functools
from collections.abc import Callable

import torch

from outpace.ops import head
from outpace.ops.cross_entropy import chunked, compute_dtype, cross_entropy_sum


def loss_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    *,
    fp8: bool = False,
) -> torch.Tensor:
    """See the table."""
    compiling = torch.compiler.is_compiling()
    if not (compiling or torch.is_grad_enabled()):
        # An evaluation, whose model is not compiled: each of its shapes would be a compilation.
        return chunked.loss_sum(hidden, weight, targets, vocab_size, fp8=fp8)
    function = _loss_sum if compiling else _compiled()
    return function(hidden, weight, targets, vocab_size, compute_dtype(hidden), fp8)


def why_not(
    device: torch.device, dtype: torch.dtype, compiled: bool, fp8: bool = False
) -> str | None:
    return None


def _loss_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    dtype: torch.dtype,
    fp8: bool,
) -> torch.Tensor:
    logits = head.linear(hidden.to(dtype), weight.to(dtype), fp8)  # (N, V)
    return cross_entropy_sum(logits, targets, vocab_size)


@functools.cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(_loss_sum, dynamic=False)
