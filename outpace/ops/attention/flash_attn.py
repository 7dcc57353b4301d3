"""The flash-attn packages, whichever is installed and suits the GPU: FlashAttention-3 (Hopper;
Shah et al. 2024, arXiv 2407.08608), -4 (`flash_attn.cute`, Hopper and Blackwell), -2 (Ampere and
later; Dao 2023, arXiv 2307.08691). All align the causal mask with the last key, as the table does,
so they also serve a KV cache. Only -2 has dropout; else dropout goes to `sdpa`, as fp32 does.
"""

from collections.abc import Callable
from typing import Any

import torch

from outpace.ops.attention import sdpa
from outpace.ops.attention.fused import HALF

# Imported only when this backend is asked for or measured.
try:
    from flash_attn_interface import flash_attn_func as flash_attn_3  # type: ignore[import-not-found]
except ImportError:
    flash_attn_3 = None
try:
    from flash_attn import flash_attn_func as flash_attn_2  # type: ignore[import-not-found]
except ImportError:
    flash_attn_2 = None
try:
    from flash_attn.cute import flash_attn_func as flash_attn_4  # type: ignore[import-not-found]
except ImportError:
    flash_attn_4 = None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, dropout_p: float = 0.0
) -> torch.Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
    version, function = _best_package(torch.cuda.get_device_capability(q.device))
    extra = {"dropout_p": dropout_p} if version == 2 else {}
    if function is None or q.dtype not in HALF or (dropout_p and not extra):
        return sdpa.attend(q, k, v, dropout_p=dropout_p)
    # Their layout is (B, T, H, D).
    out = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True, **extra)
    y: torch.Tensor = out[0] if isinstance(out, tuple) else out  # some return the log-sum-exp too
    return y.transpose(1, 2)


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda":
        return "flash-attn needs a CUDA GPU"
    if dtype not in HALF:
        return f"flash-attn computes in bf16 or fp16, not in {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"flash-attn needs a head size that is a multiple of 8, at most 256, not {head_dim}"
    if _best_package(torch.cuda.get_device_capability(device))[1] is None:
        return "no flash-attn package that suits this GPU is installed"
    return None


def kernel(device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float) -> str:
    """Name of the kernel that runs."""
    if device.type == "cpu":
        return sdpa.kernel(device, dtype, head_dim, dropout_p)
    version, _ = _best_package(torch.cuda.get_device_capability(device))
    if dropout_p and version != 2:
        return sdpa.kernel(device, dtype, head_dim, dropout_p)
    return f"FLASH_ATTN_{version}"


def _best_package(capability: tuple[int, int]) -> tuple[int, Callable[..., Any] | None]:
    """Version and function of the best package for a GPU of this compute capability."""
    major = capability[0]
    if major == 9 and flash_attn_3 is not None:
        return 3, flash_attn_3
    if major in (9, 10) and flash_attn_4 is not None:
        return 4, flash_attn_4
    return 2, flash_attn_2 if major >= 8 else None
