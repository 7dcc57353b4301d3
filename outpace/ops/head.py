"""The output head's three products, logits = x w^T and its two gradients, in the dtype of their
operands or in fp8. For the rows of the cross-entropy table that compute gradients themselves.

    x hidden states (N, C)   w weight (V, C)
    g gradient of a summed cross-entropy with respect to the logits (N, V), from `in_place.py`
"""

import torch
import torch.nn.functional as F

from outpace.ops import fp8 as eight_bits


def linear(x: torch.Tensor, w: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Logits (N, V), differentiable."""
    return eight_bits.fp8_linear(x, w) if fp8 else F.linear(x, w)


def logits(x: torch.Tensor, w: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Logits (N, V)."""
    return eight_bits.logits(x, w) if fp8 else x @ w.t()


def grad_hidden(g: torch.Tensor, w: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Gradient of x (N, C)."""
    return eight_bits.grad_hidden(eight_bits.of_loss(g), w) if fp8 else g @ w


def grad_weight(g: torch.Tensor, x: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Gradient of w (V, C)."""
    return eight_bits.grad_weight(eight_bits.of_loss(g), x) if fp8 else g.t() @ x
