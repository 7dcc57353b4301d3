"""The second half of GPT-2's MLP."""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GPT-2's GELU, a tanh approximation: x (1 + tanh u) / 2, which is x sigmoid(2u). Compiled for
    a CPU, the sigmoid takes a quarter of the tanh's time."""
    if x.device.type != "cpu" or not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    u = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    return (y * torch.sigmoid(2 * u)).to(x.dtype)


def gelu_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, recompute: bool = False
) -> torch.Tensor:
    """gelu(x) weight^T + bias. x (..., 4C) -> (..., C).

    The weight gradient needs gelu(x), GELU's own gradient needs x. `recompute` keeps only x, which
    saves 4C numbers per token and layer for one more pointwise operator (llm.c's `-r 1`,
    train_gpt2.cu). `checkpoint` stops recomputing once it has what the backward needs, so the
    product is not repeated; and it keeps the compiler from storing gelu(x) after all.
    """
    if recompute and torch.is_grad_enabled():
        y: torch.Tensor = checkpoint(
            _gelu_linear, x, weight, bias, use_reentrant=False, preserve_rng_state=False
        )
        return y
    return _gelu_linear(x, weight, bias)


def _gelu_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(gelu(x), weight, bias)
