"""PyTorch's own chunked head and loss, `F.linear_cross_entropy`, from torch 2.13 on.

It returns the loss of each token, and they are summed here: its own sum would have the dtype of the
hidden states, only 3 digits in bf16. The price: its backward computes the logits a second time.
"""

import torch
import torch.nn.functional as F

from outpace.ops.cross_entropy import IGNORE, accumulation_dtype, compute_dtype
from outpace.ops.cross_entropy.chunked import chunk_tokens


def loss_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    *,
    fp8: bool = False,
) -> torch.Tensor:
    """See `ops/cross_entropy/__init__.py`."""
    assert not fp8, "F.linear_cross_entropy makes its own products"
    dtype = compute_dtype(hidden)
    losses = F.linear_cross_entropy(
        hidden.to(dtype),
        weight[:vocab_size].to(dtype),
        targets,
        reduction="none",
        ignore_index=IGNORE,
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_tokens(hidden)),
    )
    return losses.sum(dtype=accumulation_dtype(hidden))


def why_not(
    device: torch.device, dtype: torch.dtype, compiled: bool, fp8: bool = False
) -> str | None:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return f"F.linear_cross_entropy came with torch 2.13, and this is {torch.__version__}"
    if fp8:
        return "F.linear_cross_entropy makes its own products, not in fp8"
    return None
