"""The Triton kernel of `in_place.py`, imported only where it runs, as it needs Triton."""

import torch
import triton
import triton.language as tl

from outpace.ops.cross_entropy import IGNORE

BLOCK = 8192
"""Columns at a time. A row of 50,304 bf16 logits is 100 kB: the second pass finds it in the L2
cache (132 x 3 programs x 100 kB are 40 of its 50 MB on an H100), so each logit is read from and
written to HBM once. The eviction policies tell the cache to keep a row until it is read again."""
WARPS = 16


def softmax_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    out: torch.Tensor,
    scale: float = 1.0,
) -> torch.Tensor:
    """Write the gradient times `scale` to `out` (N, V), which may be the logits, and return the
    losses. See `in_place.py`."""
    assert logits.stride(1) == out.stride(1) == 1, "a row must be contiguous"
    N, V = logits.shape
    losses = torch.empty(N, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        _kernel[(N,)](
            logits, targets, losses, out, logits.stride(0), targets.stride(0), out.stride(0),
            vocab_size, V, SCALE=scale, IGNORED=IGNORE, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return losses


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    logits,
    targets,
    losses,
    out,
    row_stride,
    target_stride,
    out_stride,
    vocab_size,
    columns,
    SCALE: tl.constexpr,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: an online softmax over blocks (Milakov and Gimelshein 2018, algorithm 3),
    then the gradient over the same blocks."""
    row = tl.program_id(0).to(tl.int64)  # 65,536 x 50,304 elements exceed 32 bits
    logits += row * row_stride
    out += row * out_stride
    target = tl.load(targets + row * target_stride)
    counted = target != IGNORED
    # Loaded before the first reduction, whose barrier orders it before every store over the logits.
    at_target = tl.load(logits + target, mask=counted, other=0.0).to(tl.float32)

    largest = -float("inf")
    total = 0.0
    for start in range(0, vocab_size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        # Masked at a multiple of 16, so that 8 values load at once; vocab_size is no such multiple.
        within = column < columns
        z = tl.load(logits + column, mask=within, other=0.0, eviction_policy="evict_last")
        z = tl.where(column < vocab_size, z.to(tl.float32), -float("inf"))
        larger = tl.maximum(largest, tl.max(z, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(z - larger), 0)
        largest = larger
    log_total = largest + tl.log(total)
    tl.store(losses + row, tl.where(counted, log_total - at_target, 0.0))

    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        within = column < columns
        z = tl.load(logits + column, mask=within, other=0.0, eviction_policy="evict_first")
        p = tl.exp(z.to(tl.float32) - log_total)
        gradient = tl.where(column == target, p - 1.0, p)
        gradient = tl.where(counted & (column < vocab_size), gradient, 0.0)
        gradient = (gradient * SCALE).to(out.dtype.element_ty)
        tl.store(out + column, gradient, mask=within, eviction_policy="evict_first")
