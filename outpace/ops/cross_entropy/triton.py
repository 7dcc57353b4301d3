"""The fastest loss on a GPU: the loss kernel writes the gradient over the logits, so there is only
one copy of them (2 bytes each in bf16, read and written once), and the backward is two products.

The same idea as Liger-Kernel's (Hsu et al. 2024, arXiv 2410.10989), without its chunks.
"""

import importlib.util

import torch

from outpace.ops import head
from outpace.ops.cross_entropy import compute_dtype
from outpace.ops.cross_entropy.in_place import loss_and_gradient


def loss_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    *,
    fp8: bool = False,
) -> torch.Tensor:
    """See `ops/cross_entropy/__init__.py`."""
    loss: torch.Tensor = _InPlace.apply(
        hidden, weight, targets, vocab_size, compute_dtype(hidden), fp8
    )
    return loss


def why_not(
    device: torch.device, dtype: torch.dtype, compiled: bool, fp8: bool = False
) -> str | None:
    if device.type != "cuda":
        return "Triton kernels need a CUDA GPU"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, vocab_size, dtype, fp8):  # type: ignore[no-untyped-def]
        h, w = hidden.to(dtype), weight.to(dtype)
        logits = head.logits(h, w, fp8)  # (N, V)
        losses, gradient = loss_and_gradient(logits, targets, vocab_size, fp8)
        ctx.save_for_backward(h, w, gradient)
        ctx.dtypes, ctx.fp8 = (hidden.dtype, weight.dtype), fp8
        return losses.sum()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        h, w, g = ctx.saved_tensors
        # The small operands are multiplied by the upstream factor (1 / tokens, fp16's loss scale):
        # a pass over the (N, V) gradient would cost as much as the loss itself.
        grad_h = head.grad_hidden(g, w, ctx.fp8).to(ctx.dtypes[0]) * upstream
        grad_w = head.grad_weight(g, h * upstream, ctx.fp8).to(ctx.dtypes[1])
        return grad_h, grad_w, None, None, None, None
