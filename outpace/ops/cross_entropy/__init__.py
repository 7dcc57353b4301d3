"""The cross-entropy table: tied output head and next-token loss in one, over a padded vocabulary.

An implementation is a module with two functions:

    loss_sum(hidden, weight, targets, vocab_size, *, fp8=False) -> scalar
    why_not(device, dtype, compiled, fp8=False) -> why it cannot be used there, or None

hidden (N, C), weight (V, C), targets (N,) -> the sum of -log p(target) in nats, in fp32. Targets
equal to IGNORE do not count, and columns from vocab_size on get no probability. Under autocast the
products have its dtype; gradients have the dtype of their parameter. `fp8` computes the head's
products in fp8 (see `ops/fp8.py`). `compiled` says whether the model around it is compiled.
Every one is tested, forward and backward, against the closed form in fp32.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F

from outpace.core.registry import Registry
from outpace.ops import fastest

IGNORE = -100
"""Targets with this value do not count."""

LOSSES = Registry(
    "cross-entropy",
    {
        "eager": "outpace.ops.cross_entropy.eager",
        "compiled": "outpace.ops.cross_entropy.compiled",
        "chunked": "outpace.ops.cross_entropy.chunked",
        "triton": "outpace.ops.cross_entropy.triton",
        "linear": "outpace.ops.cross_entropy.linear",
    },
)


def mask_padding(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Set the logits of the padding columns to -inf, in place, so that they get no probability and
    are never predicted. logits (..., V padded)."""
    if logits.size(-1) > vocab_size:
        logits[..., vocab_size:] = float("-inf")
    return logits


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Sum of -log p(target) in nats, in fp32. logits (N, V padded), targets (N,) -> scalar."""
    logits = mask_padding(logits, vocab_size)
    if logits.device.type == "cpu" and not torch.is_grad_enabled():
        return token_losses(logits, targets).sum()
    logits = logits.to(accumulation_dtype(logits))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


CACHED_ROWS = 8
"""Rows of logits per thread of a CPU: their fp32 copies and log-softmax, 3.2 MB, stay in its cache;
those of 1,024 rows at once take 400 MB of memory (docs/lab-log.md)."""


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) of each row in nats, in fp32, without a gradient. logits (N, V), padding at
    -inf, targets (N,) -> (N,)."""
    dtype = accumulation_dtype(logits)
    on_cpu = logits.device.type == "cpu"
    rows = CACHED_ROWS * torch.get_num_threads() if on_cpu else max(1, len(logits))
    return torch.cat(
        [
            F.cross_entropy(z.to(dtype), t, ignore_index=IGNORE, reduction="none")
            for z, t in zip(logits.split(rows), targets.split(rows), strict=True)
        ]
    )


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of softmax, sums and loss: fp32, or fp64 for fp64 (the tests' gradient checks)."""
    return torch.promote_types(x.dtype, torch.float32)


def compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The dtype of the head's products: autocast's where it is on, else that of `hidden`."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


MEASURED_TOKENS = (16_384, 4096)
"""Tokens to measure with, the second if the first does not fit: 16,384 are two chunks of the
chunked loss, and eager's copies of their logits take 10 GB; the bf16 logits of 4,096 take 0.4 GB,
still more than any cache holds."""

FP8_TOLERANCE = 0.2
"""Gradients in e5m2 have 2 bits of mantissa, an error of about 7%."""


def choose(
    device: torch.device, dtype: torch.dtype, C: int, V: int, compiled: bool, fp8: bool = False
) -> tuple[str, str]:
    """The implementation for training when none was asked for, and why. `dtype` is that of the
    products; `compiled` says whether the model is. On a GPU all are measured, once per machine and
    shape."""
    if device.type != "cuda":
        return "chunked", "on a CPU reusing one buffer of logits is faster than allocating them all"
    # Where the model is not compiled, the compiler may not work at all.
    useless = "eager" if compiled else "compiled"
    names = [
        name
        for name in LOSSES.names()
        if name != useless and LOSSES.load(name).why_not(device, dtype, compiled, fp8) is None
    ]
    kind, tolerance = ("cross-entropy, fp8 head", FP8_TOLERANCE) if fp8 else ("cross-entropy", None)
    for N in MEASURED_TOKENS:
        shape = {"N": N, "C": C, "V": V}
        prepare = partial(_candidates, device, dtype, shape, names, fp8)
        if found := fastest.fastest(kind, device, dtype, shape, names, prepare, tolerance):
            return found.choice, found.reason()
    return "chunked", "no loss could be measured, and chunked needs least memory"


def _candidates(
    device: torch.device,
    dtype: torch.dtype,
    shape: dict[str, int],
    names: list[str],
    fp8: bool = False,
) -> tuple[fastest.Work, dict[str, fastest.Work]]:
    """Forward and backward of the reference (eager in fp32) and of each one under autocast."""
    N, C, V = shape.values()
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(N, C, device=device, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(V, C, device=device, generator=generator)).requires_grad_()
    targets = torch.randint(V, (N,), device=device, generator=generator)

    def work(name: str, half: bool) -> Sequence[torch.Tensor]:
        with torch.autocast(device.type, dtype=dtype if half else None, enabled=half):
            loss = LOSSES.load(name).loss_sum(hidden, weight, targets, V, fp8=fp8 and half)
        return loss, *torch.autograd.grad(loss / N, (hidden, weight))

    half = dtype != torch.float32
    return partial(work, "eager", False), {name: partial(work, name, half) for name in names}
