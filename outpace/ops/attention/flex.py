"""FlexAttention (Dong et al. 2024, arXiv 2412.05496): a Triton kernel that PyTorch's compiler
generates for the causal mask, whose empty blocks it skips. It has no dropout, and a KV cache would
recompile it for each length: both go to `sdpa`.
"""

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from outpace.ops.attention import sdpa


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    mask: BlockMask | None = None,
) -> torch.Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
    T = q.size(-2)
    if mask is not None:
        assert not dropout_p, "FlexAttention has no dropout"
        return _flex(q, k, v, mask) if torch.compiler.is_compiling() else _compiled()(q, k, v, mask)
    if dropout_p or k.size(-2) != T:
        return sdpa.attend(q, k, v, dropout_p=dropout_p)
    if torch.compiler.is_compiling():  # the mask of every layer is the same, and made once
        return _flex(q, k, v, _causal_mask(T, q.device))
    return _compiled()(q, k, v, _cached_mask(T, q.device))


def document_mask(documents: torch.Tensor) -> BlockMask:
    """documents (B, T), equal within a document -> the block mask with which a token sees its own
    document up to itself."""

    def visible(
        b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (query >= key) & (documents[b, query] == documents[b, key])

    B, T = documents.shape
    return create_block_mask(visible, B, None, T, T, device=documents.device)


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if device.type != "cuda":
        return f"FlexAttention has no backward on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "FlexAttention needs the package triton"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "FlexAttention needs compute capability 8.0"
    if head_dim < 16:
        return f"FlexAttention needs a head size of at least 16, not {head_dim}"
    return None


def kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, dropout_p: float, masked: bool = False
) -> str:
    """Name of the kernel that runs."""
    return sdpa.kernel(device, dtype, head_dim, dropout_p) if dropout_p else "FLEX_ATTENTION"


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> torch.Tensor:
    out: torch.Tensor = flex_attention(q, k, v, block_mask=mask)  # type: ignore[assignment]
    return out


@functools.cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(_flex, dynamic=False)


def _visible(
    b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    return query >= key


def _causal_mask(T: int, device: torch.device) -> BlockMask:
    return create_block_mask(_visible, None, None, T, T, device=device)


@functools.cache
def _cached_mask(T: int, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):  # a mask made in an evaluation is reused by a training step
        return _causal_mask(T, device)
