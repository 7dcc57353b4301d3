"""A linear map whose bias gradient the compiler can fuse with the operator before it.

`F.linear` sums the bias gradient over all tokens at once, (B T, out) -> (out,). The compiler cannot
fuse so long a reduction with the operator that produced that gradient (GELU's backward, or the
concatenation of dq, dk and dv), so the whole gradient is read again. A reduction over one sequence,
(B, T, out) -> (B, out), does fuse, and what remains to be summed is small.
"""

import torch
import torch.nn.functional as F


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`F.linear`: x (B, T, in) -> (B, T, out)."""
    y: torch.Tensor = _Bias.apply(F.linear(x, weight, bias.detach()), bias)
    return y


class _Bias(torch.autograd.Function):
    """The identity on y, which already contains the bias; its backward sums the bias gradient."""

    @staticmethod
    def forward(ctx, y, bias):  # type: ignore[no-untyped-def]
        ctx.dtype = bias.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        of_sequences = g.sum(1, dtype=torch.promote_types(ctx.dtype, torch.float32))  # (B, out)
        return g, of_sequences.sum(0).to(ctx.dtype)
