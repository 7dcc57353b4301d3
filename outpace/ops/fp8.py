"""Matrix products in fp8 for the output head. They change the numerics, so they are opt-in.

Operands are quantised with one scale per tensor, so that their largest magnitude becomes the
dtype's (current scaling): e4m3 (3 bits of mantissa, up to 448) for hidden states and weight, e5m2
(2 bits, up to 57,344) for gradients, after Micikevicius et al. 2022, arXiv 2209.05433. Sums are in
fp32; the forward allows the tensor cores' faster, shorter accumulation, the backward does not.
`torch._scaled_mm` wants a row-major first operand, a column-major second one, and sizes that are
multiples of 16.

    x hidden states (N, C)   w weight (V, C)   g gradient of the logits (N, V)
"""

from typing import NamedTuple

import torch

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""cuBLASLt's fp8 products want sizes in multiples of 16."""
LOSS_GRADIENT_FACTOR = torch.finfo(E5M2).max
"""What the gradient of a summed cross-entropy is multiplied by before it is stored. Softmax minus
one-hot is at most 1 in magnitude, so this needs no pass over it."""


class Scaled(NamedTuple):
    """values * scale is the tensor."""

    values: torch.Tensor
    """In fp8."""
    scale: torch.Tensor
    """A scalar, fp32."""


def fp8_linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (N, C) and w (V, C) -> logits (N, V) in x's type; the backward is in fp8 as well."""
    out: torch.Tensor = _Linear.apply(x, w)
    return out


def why_not(device: torch.device, dtype: torch.dtype, C: int, V: int) -> str | None:
    """Why the head cannot be computed in fp8 there, or None. V is the padded vocabulary."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has no fp8 products (compute capability 8.9)"
    return unsuited(dtype, C, V)


def unsuited(dtype: torch.dtype, C: int, V: int) -> str | None:
    """The same for any GPU that has fp8 products."""
    if dtype != torch.bfloat16:
        return f"fp8 products give bf16 logits, and the precision is {dtype}"
    if C % MULTIPLE or V % MULTIPLE:
        return f"{C} channels and {V} columns are not both multiples of {MULTIPLE}"
    return None


def logits(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x w^T (N, V)."""
    x8, w8 = quantise(x, E4M3), quantise(w, E4M3)
    return _product(x8, Scaled(w8.values.t(), w8.scale), x.dtype, fast=True)


def grad_hidden(g: Scaled, w: torch.Tensor) -> torch.Tensor:
    """g w (N, C)."""
    return _product(g, _column_major(quantise(w, E4M3)), w.dtype, fast=False)


def grad_weight(g: Scaled, x: torch.Tensor) -> torch.Tensor:
    """g^T x (V, C); in x's own type where the number of tokens is not a multiple of 16."""
    values, scale = g
    if len(x) % MULTIPLE:
        return (values.to(x.dtype).t() @ x) * scale.to(x.dtype)
    x8 = _column_major(quantise(x, E4M3))
    return _product(Scaled(values.t().contiguous(), scale), x8, x.dtype, fast=False)


def quantise(x: torch.Tensor, dtype: torch.dtype) -> Scaled:
    """Quantise with the scale that maps the largest magnitude to the dtype's maximum."""
    amax = x.abs().amax().float().clamp_min(1e-12)  # all zero: any scale will do
    scale = amax / torch.finfo(dtype).max
    return Scaled((x.float() / scale).to(dtype), scale)


def scaled_loss_gradient(g: torch.Tensor) -> Scaled:
    """From g (N, V) as `in_place.py` makes it: in e5m2, times LOSS_GRADIENT_FACTOR."""
    return Scaled(g, torch.full((), 1 / LOSS_GRADIENT_FACTOR, dtype=torch.float32, device=g.device))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w)
        return logits(x, w)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        g8 = quantise(g, E5M2)
        return grad_hidden(g8, w), grad_weight(g8, x)


def _column_major(x: Scaled) -> Scaled:
    return Scaled(x.values.t().contiguous().t(), x.scale)


def _product(a: Scaled, b: Scaled, dtype: torch.dtype, *, fast: bool) -> torch.Tensor:
    return torch._scaled_mm(
        a.values, b.values, scale_a=a.scale, scale_b=b.scale, out_dtype=dtype, use_fast_accum=fast
    )
