"""PyTorch's fused attention: cuDNN on Hopper with torch >= 2.11, else FlashAttention or the
memory-efficient kernel on CUDA, and a blocked kernel on CPU. PyTorch chooses; none of them stores
the T x S matrix, but its last resort (MATH) does, so we ask which one it would take.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

MATERIALISING = {SDPBackend.MATH.name, SDPBackend.ERROR.name}


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, dropout_p: float = 0.0
) -> torch.Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
    T, S = q.size(-2), k.size(-2)
    if not causal or T == 1:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    if T == S:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
    visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout_p)


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """A reason when only the materialising fall-back would run (dropout is asked in `kernel`)."""
    if kernel(device, dtype, head_dim, 0.0) in MATERIALISING:
        return f"PyTorch has no fused kernel for {dtype} with head size {head_dim} on {device.type}"
    return None


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float) -> str:
    """Name of the kernel PyTorch takes for training at this dtype, asked of PyTorch itself."""
    q = torch.zeros(1, 1, 128, head_dim, device=device, dtype=dtype, requires_grad=True)
    choice = torch._fused_sdp_choice(q, q, q, None, dropout_p, True)
    return next(b.name for b in SDPBackend.__members__.values() if int(b) == choice)  # type: ignore[call-overload]
