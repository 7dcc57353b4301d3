"""PyTorch's kernels, each by its name: cuDNN, FlashAttention-2, the memory-efficient one, and its
fallback, MATH, which stores the T x S matrix and computes in fp32.

The operators behind `F.scaled_dot_product_attention` are called directly instead of through
`torch.nn.attention.sdpa_kernel`: inside a compiled model that context manager keeps the graph out
of the compile cache (pytorch issue 194007; seen here with torch 2.13). They serve causal attention
over whole sequences on a GPU. Everything else goes to `sdpa`: a KV cache, a dtype that the kernel
lacks (fp32 in cuDNN and FlashAttention, as when a checkpoint is verified), and all calls on a CPU,
where `sdpa` runs the `flash` kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend

from outpace.ops.attention import sdpa

aten = torch.ops.aten


@dataclass(frozen=True)
class Fused:
    """A row of the table: one kernel of PyTorch's."""

    backend: SDPBackend
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    can_use: Callable[[torch.backends.cuda.SDPAParams, bool], bool]
    dtypes: frozenset[torch.dtype]

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        dropout_p: float = 0.0,
    ) -> torch.Tensor:
        """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
        whole = q.size(-2) == k.size(-2) > 1  # cuDNN has no kernel for a single key
        alike = q.dtype == k.dtype == v.dtype  # cuDNN's kernel assumes this
        if not (whole and alike) or q.dtype not in self.dtypes or q.device.type == "cpu":
            return sdpa.attend(q, k, v, dropout_p=dropout_p)
        return self.run(q, k, v, dropout_p)

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why PyTorch cannot train with this kernel, or None."""
        if device.type != "cuda":
            runs = sdpa.kernel(device, dtype, head_dim, 0.0) == self.backend.name
            return None if runs else f"{self.backend.name} does not run on {device.type}"
        if dtype not in self.dtypes:
            return f"{self.backend.name} computes in bf16 or fp16, not in {dtype}"
        if self.backend == SDPBackend.FLASH_ATTENTION and head_dim % 8:
            return f"{self.backend.name} needs a head size that is a multiple of 8, not {head_dim}"
        q = torch.zeros(1, 1, 128, head_dim, device=device, dtype=dtype, requires_grad=True)
        params = torch.backends.cuda.SDPAParams(q, q, q, None, 0.0, True, False)
        if self.can_use(params, False):
            return None
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return (
            f"PyTorch has no {self.backend.name} for {dtype} with head size {head_dim} on "
            f"compute capability {capability}"
        )

    def kernel(
        self, device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float
    ) -> str:
        """Name of the kernel that runs."""
        if device.type == "cpu":
            return sdpa.kernel(device, dtype, head_dim, dropout_p)
        return self.backend.name


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> torch.Tensor:
    out: torch.Tensor = aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, _training(q), dropout_p, True
    )[0]
    return out


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> torch.Tensor:
    out: torch.Tensor = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, True)[0]
    return out


def _efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> torch.Tensor:
    out: torch.Tensor = aten._scaled_dot_product_efficient_attention(
        q, k, v, None, _training(q), dropout_p, True
    )[0]
    return out


def _math(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float) -> torch.Tensor:
    out: torch.Tensor = aten._scaled_dot_product_attention_math(q, k, v, None, dropout_p, True)[0]
    return out


def _training(q: torch.Tensor) -> bool:
    """Whether the log-sum-exp must be kept for a backward."""
    return torch.is_grad_enabled() and q.requires_grad


HALF = frozenset({torch.float16, torch.bfloat16})
"""What cuDNN's and FlashAttention's kernels compute in."""
ALL = HALF | {torch.float32}
cuda = torch.backends.cuda
cudnn = Fused(SDPBackend.CUDNN_ATTENTION, _cudnn, cuda.can_use_cudnn_attention, HALF)
flash = Fused(SDPBackend.FLASH_ATTENTION, _flash, cuda.can_use_flash_attention, HALF)
efficient = Fused(SDPBackend.EFFICIENT_ATTENTION, _efficient, cuda.can_use_efficient_attention, ALL)
math = Fused(SDPBackend.MATH, _math, lambda params, debug: True, ALL)
