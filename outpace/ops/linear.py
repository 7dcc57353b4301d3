"""A linear map whose bias' gradient is summed where the gradient of its output is made.

`F.linear` sums it over all tokens at once, (B T, out) -> (out,): too long a sum for the compiler to
join with the operator that made that gradient (GELU's, or the one that puts q, k and v together),
so it reads all of it again. Sums of a sequence each, (B, T, out) -> (B, out), it does join.
"""

import torch
import torch.nn.functional as F


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`F.linear`: x (B, T, in) -> (B, T, out)."""
    y: torch.Tensor = _Bias.apply(F.linear(x, weight, bias.detach()), bias)
    return y


class _Bias(torch.autograd.Function):
    """What it is given, to which the bias was added."""

    @staticmethod
    def forward(ctx, y, bias):  # type: ignore[no-untyped-def]
        ctx.dtype = bias.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        of_sequences = g.sum(1, dtype=torch.promote_types(ctx.dtype, torch.float32))  # (B, out)
        return g, of_sequences.sum(0).to(ctx.dtype)
