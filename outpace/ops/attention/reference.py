"""The truth: softmax(q k^T / sqrt(D)) v in fp32, with the T x S matrix stored. Slow on purpose."""

import math

import torch


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D) in q's dtype."""
    T, S = q.size(-2), k.size(-2)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
        visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        visible = visible if mask is None else visible & mask
        scores = scores.masked_fill(~visible, float("-inf"))
        weights = torch.dropout(scores.softmax(-1), dropout_p, train=dropout_p > 0)
        return (weights @ v.float()).to(q.dtype)  # (B, H, T, D)


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """documents (B, T), equal within a document -> True where query and key share a document,
    (B, 1, T, T)."""
    return (documents[:, :, None] == documents[:, None, :])[:, None]


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None


def kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float, masked: bool = False
) -> str:
    """Name of the kernel that runs."""
    return "materialised"
