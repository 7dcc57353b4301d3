"""The output head's three products, logits = x w^T and its two gradients, in the dtype of their
operands or in fp8. For the losses in `ops/cross_entropy/` that compute gradients themselves.

    x hidden states (N, C)   w weight (V, C)
    g gradient of a summed cross-entropy with respect to the logits (N, V), from `in_place.py`
"""

import torch
import torch.nn.functional as F

from outpace.ops import fp8 as fp8_ops


def linear(x: torch.Tensor, w: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Logits (N, V), differentiable."""
    return fp8_ops.fp8_linear(x, w) if fp8 else F.linear(x, w)


def logits(x: torch.Tensor, w: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Logits (N, V)."""
    return fp8_ops.logits(x, w) if fp8 else x @ w.t()


def grad_hidden(g: torch.Tensor, w: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Gradient of x (N, C)."""
    return fp8_ops.grad_hidden(fp8_ops.scaled_loss_gradient(g), w) if fp8 else g @ w


def grad_weight(g: torch.Tensor, x: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Gradient of w (V, C)."""
    return fp8_ops.grad_weight(fp8_ops.scaled_loss_gradient(g), x) if fp8 else g.t() @ x
