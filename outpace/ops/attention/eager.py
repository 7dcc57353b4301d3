"""Textbook attention, one PyTorch operator after the other: q k^T / sqrt(D), the mask, softmax,
times v. Under autocast the products have its dtype and the softmax is fp32. It stores the T x S
matrix several times over; it is the baseline of the fused kernels.
"""

import math

import torch


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, dropout_p: float = 0.0
) -> torch.Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
    T, S = q.size(-2), k.size(-2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.dropout(scores.softmax(-1), dropout_p, train=dropout_p > 0)
    return weights.to(v.dtype) @ v


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float) -> str:
    """Name of the kernel that runs."""
    return "materialised under autocast"
