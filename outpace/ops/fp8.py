"""Products in 8 bits, for the head of a model that asks for it. Changes the numerics: opt-in.

Operands are quantised with one scale a tensor so that their largest magnitude meets the type's
(current scaling): e4m3 (3 bits of mantissa, up to 448) for hidden states and weight, e5m2 (2 bits,
up to 57,344) for gradients, after Micikevicius et al. 2022, arXiv 2209.05433. Sums are in fp32;
the forward allows the tensor cores' faster, shorter accumulation, the backward does not.
`torch._scaled_mm` wants the first operand row-major, the second column-major, sizes in 16s.

    x hidden states (N, C)   w weight (V, C)   g gradient of the logits (N, V)
"""

import torch

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""cuBLASLt's fp8 products want sizes in multiples of 16."""


def fp8_linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (N, C) and w (V, C) -> logits (N, V) in x's type; the backward is in fp8 as well."""
    out: torch.Tensor = _Linear.apply(x, w)
    return out


def why_not(device: torch.device, dtype: torch.dtype, C: int, V: int) -> str | None:
    """A reason why the head cannot be made in fp8 there, or None. V is the padded vocabulary."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has no fp8 products (compute capability 8.9)"
    if dtype != torch.bfloat16:
        return f"fp8 products give bf16 logits, and the precision is {dtype}"
    if C % MULTIPLE or V % MULTIPLE:
        return f"{C} channels and {V} columns are not both multiples of {MULTIPLE}"
    return None


def logits(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x w^T (N, V)."""
    (x8, x_scale), (w8, w_scale) = _quantise(x, E4M3), _quantise(w, E4M3)
    return _product(x8, w8.t(), x_scale, w_scale, x.dtype, fast=True)


def grad_hidden(
    g: torch.Tensor, w: torch.Tensor, largest_gradient: float | None = None
) -> torch.Tensor:
    """g w (N, C). A known bound on |g| spares a pass over it."""
    (g8, g_scale), (w8, w_scale) = _quantise(g, E5M2, largest_gradient), _quantise(w, E4M3)
    return _product(g8, _column_major(w8), g_scale, w_scale, g.dtype, fast=False)


def grad_weight(
    g: torch.Tensor, x: torch.Tensor, largest_gradient: float | None = None
) -> torch.Tensor:
    """g^T x (V, C); in g's own type where the number of tokens is not a multiple of 16."""
    if g.size(0) % MULTIPLE:
        return g.t() @ x
    (g8, g_scale), (x8, x_scale) = _quantise(g, E5M2, largest_gradient), _quantise(x, E4M3)
    return _product(g8.t().contiguous(), _column_major(x8), g_scale, x_scale, g.dtype, fast=False)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w)
        return logits(x, w)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        return grad_hidden(g, w), grad_weight(g, x)


def _quantise(
    x: torch.Tensor, dtype: torch.dtype, largest: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x / scale in fp8, and the scale (a scalar, fp32)."""
    if largest is None:
        amax = x.abs().amax().float().clamp_min(1e-12)  # all zero: any scale will do
    else:
        amax = torch.full((), largest, device=x.device)
    scale = amax / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


def _column_major(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t()


def _product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    fast: bool,
) -> torch.Tensor:
    return torch._scaled_mm(
        a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
    )
