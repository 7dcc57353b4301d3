"""Cross-entropy and its gradient in one operator; the gradient overwrites the logits, or is fp8.

The gradient of -log softmax(z)[t] is softmax(z) - onehot(t): once the loss is known the logits are
no longer needed. The operator is opaque to the compiler, which therefore makes no copy of them. On
a GPU it is a Triton kernel that reads and writes each logit once, elsewhere PyTorch's operators.
"""

import functools
import math
from collections.abc import Callable

import torch

from outpace.ops.cross_entropy import IGNORE, accumulation_dtype
from outpace.ops.fp8 import E5M2, LOSS_GRADIENT_FACTOR


def loss_and_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    fp8: bool,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses (N,) in nats, fp32, and the gradient of their sum with respect to the logits
    (N, V): written over the logits, or with `fp8` in e5m2 for the products of `ops/fp8.py`."""
    if fp8:
        losses, gradient = softmax_gradient_fp8(logits, targets, vocab_size)
        return losses, gradient
    return softmax_gradient_(logits, targets, vocab_size, compiled), logits


@torch.library.custom_op("outpace::softmax_gradient_", mutates_args=("logits",))
def softmax_gradient_(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int, compiled: bool = False
) -> torch.Tensor:
    """Overwrite logits (N, V padded) with their gradient, zero where the target is IGNORE and in
    columns from vocab_size on; returns the losses (N,) in nats, fp32. With `compiled` the softmax
    of bf16 and fp16 logits on a CPU is compiled, and needs no fp32 copy."""
    counted = (targets != IGNORE).unsqueeze(1)  # (N, 1)
    target = targets.clamp_min(0).unsqueeze(1)  # (N, 1)
    logits[:, vocab_size:] = float("-inf")
    at_target = logits.gather(1, target).to(accumulation_dtype(logits))
    if logits.dtype == accumulation_dtype(logits):
        log_total = _softmax_by_rows_(logits)  # (N, 1)
    else:
        log_total = (_compiled() if compiled else _softmax_)(logits)  # (N, 1)
    losses = (log_total - at_target).masked_fill_(~counted, 0.0).squeeze(1)
    # Not scatter_, which copies all of the logits twice on a CPU.
    rows = torch.arange(len(logits), device=logits.device).unsqueeze(1)  # (N, 1)
    logits[rows, target] = (at_target - log_total).exp_().sub_(1.0).to(logits.dtype)
    if not bool(counted.all()):
        logits.masked_fill_(~counted, 0.0)
    return losses


def _softmax_by_rows_(logits: torch.Tensor) -> torch.Tensor:
    """Overwrite logits (N, V) with their softmax; returns the log-sum-exp (N, 1). PyTorch's softmax
    works row by row, which stays in the cache, and may write over its input."""
    largest = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=logits)
    return largest - logits.amax(-1, keepdim=True).log()  # the largest share is 1 / total


def _softmax_(logits: torch.Tensor) -> torch.Tensor:
    """The same in operators that the compiler can fuse. In base 2, because it would write exp's
    results, (N, V) in fp32, to memory and read them again; exp2 it computes twice instead."""
    z = logits.to(accumulation_dtype(logits)) * math.log2(math.e)
    largest = z.amax(-1, keepdim=True)
    shares = (z - largest).exp2()
    total = shares.sum(-1, keepdim=True)
    logits.copy_(shares * total.reciprocal())
    return (largest + total.log2()) * math.log(2)


@functools.cache
def _compiled() -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.compile(_softmax_, dynamic=False)


@softmax_gradient_.register_kernel("cuda")
def _cuda(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int, compiled: bool = False
) -> torch.Tensor:
    from outpace.ops.cross_entropy import softmax_kernel

    return softmax_kernel.softmax_gradient(logits, targets, vocab_size, logits)


@softmax_gradient_.register_fake
def _fake(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int, compiled: bool = False
) -> torch.Tensor:
    return torch.empty_like(targets, dtype=accumulation_dtype(logits))


@torch.library.custom_op("outpace::softmax_gradient_fp8", mutates_args=())
def softmax_gradient_fp8(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses (N,), and the gradient (N, V) in e5m2 times LOSS_GRADIENT_FACTOR: half the bytes
    of bf16, and no separate pass to convert it."""
    gradient = logits.clone()
    losses = softmax_gradient_(gradient, targets, vocab_size)
    return losses, (gradient.float() * LOSS_GRADIENT_FACTOR).to(E5M2)


@softmax_gradient_fp8.register_kernel("cuda")
def _cuda_fp8(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from outpace.ops.cross_entropy import softmax_kernel

    gradient = torch.empty_like(logits, dtype=E5M2)
    losses = softmax_kernel.softmax_gradient(
        logits, targets, vocab_size, gradient, LOSS_GRADIENT_FACTOR
    )
    return losses, gradient


@softmax_gradient_fp8.register_fake
def _fake_fp8(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.empty_like(targets, dtype=accumulation_dtype(logits))
    return losses, torch.empty_like(logits, dtype=E5M2)
