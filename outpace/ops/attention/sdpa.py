"""PyTorch's fused attention: cuDNN on Hopper with torch >= 2.11, else FlashAttention or the
memory-efficient kernel on CUDA, and a blocked kernel on CPU. PyTorch chooses. None of these stores
the T x S matrix, but its fallback (MATH) does, so `kernel` asks which one it would take.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from outpace.ops.attention import is_materialised, reference

BF16_UNITS = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
"""Whether this CPU multiplies bf16. Where it does not, its backward in bf16 takes 5.4 times as long
as in fp32 (84 against 15 ms at (4, 6, 256, 64) with AVX2, torch 2.13)."""


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not BF16_UNITS:
        with torch.autocast("cpu", enabled=False):
            y = _attend(q.float(), k.float(), v.float(), dropout_p, mask)
        return y.to(q.dtype)
    return _attend(q, k, v, dropout_p, mask)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    T, S = q.size(-2), k.size(-2)
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
    if T == 1:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    if T == S:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
    visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout_p)


def attend_each(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    mask: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Attention within each of the texts that lie end to end in one row: q, k, v (1, H, T, D) and
    a mask (1, T_i, T_i) for each text -> (1, H, T, D)."""
    B, H, T, D = q.shape
    y = q.new_empty(B, T, H, D).transpose(1, 2)
    end = 0
    for visible in mask:
        begin, end = end, end + visible.size(-1)
        part = (x[:, :, begin:end] for x in (q, k, v))
        y[:, :, begin:end] = attend(*part, dropout_p=dropout_p, mask=visible.unsqueeze(1))
    return y


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """documents (B, T), equal within a document -> True where a query sees a key, (B, 1, T, T): its
    own document up to itself. One mask for all heads and layers."""
    return reference.document_mask(documents).tril()


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """A reason if only the materialising fallback would run, leaving dropout aside."""
    if is_materialised(kernel(device, dtype, head_dim, 0.0)):
        return f"PyTorch has no fused kernel for {dtype} with head size {head_dim} on {device.type}"
    return None


def kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float, masked: bool = False
) -> str:
    """Name of the kernel that PyTorch itself says it would train with."""
    q = torch.zeros(1, 1, 128, head_dim, device=device, dtype=dtype, requires_grad=True)
    mask = torch.ones(1, 1, 128, 128, device=device, dtype=torch.bool) if masked else None
    choice = torch._fused_sdp_choice(q, q, q, mask, dropout_p, not masked)
    return next(b.name for b in SDPBackend.__members__.values() if int(b) == choice)  # type: ignore[call-overload]
