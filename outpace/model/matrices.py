"""A GPT-2 for inference whose matrices are stored in another form, and the form that is exact: as
oneDNN lays them out for this CPU.

torch's own products read a weight as PyTorch stores it and, at one row, on one thread. A weight
that is laid out beforehand is read in order by all threads, and bias and GELU are done where the
product is (`torch/_inductor` does the same to a frozen, compiled model). Only the order in which
products are added up differs.
"""

import contextlib
import platform
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from outpace.model.gpt2 import GPT2, Block
from outpace.ops.cross_entropy import mask_padding
from outpace.ops.mlp import gelu

M = TypeVar("M", bound=nn.Module)
Activation = Callable[[torch.Tensor], torch.Tensor] | None
Make = Callable[[torch.Tensor, torch.Tensor | None, Activation], nn.Module]
"""(weight (out, in), bias (out,) or None, what follows) -> a module (..., in) -> (..., out) that
does all of it."""


class InferenceGPT2(GPT2):
    """A GPT-2 that only computes. `wte` serves the embedding, `head` the logits."""

    head: nn.Module

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., C) -> logits (..., V), padding at -inf."""
        return mask_padding(self.head(hidden), self.shape.vocab_size)


@torch.no_grad()
def with_matrices(model: GPT2, make: Make) -> GPT2:
    """A model with `make`'s matrices; all else is shared with `model`, which stays as it is."""

    def rebuilt(old: Block) -> nn.Module:
        linear = [(n, m) for n, m in old.attn.named_children() if isinstance(m, nn.Linear)]
        attn = _like(old.attn, {n: make(m.weight, m.bias, None) for n, m in linear})
        fc, proj = old.mlp.c_fc, old.mlp.c_proj
        mlp = nn.Sequential(make(fc.weight, fc.bias, gelu), make(proj.weight, proj.bias, None))
        return _like(old, {"attn": attn, "mlp": mlp})

    h = nn.ModuleList(map(rebuilt, cast(list[Block], model.h)))
    head = make(model.wte.weight, None, None)
    return _like(model, {"h": h, "head": head}, InferenceGPT2).eval()


def _like(old: M, children: dict[str, nn.Module], kind: type[M] | None = None) -> M:
    """A module with all that `old` has, except these children."""
    new = object.__new__(kind or type(old))
    new.__dict__ = {**vars(old), "_modules": vars(old)["_modules"] | children}
    return new


@torch.no_grad()
def why_not_rebuilt(model: GPT2) -> str | None:
    """Why `with_matrices` cannot serve this model: it writes MLP and head down again, and would
    silently leave out what only `model/gpt2.py` has. Compared on a few tokens."""
    idx = torch.arange(min(8, model.shape.context, model.shape.vocab_size))[None]  # (1, T)
    with contextlib.suppress(AttributeError):  # a part of another name
        again = with_matrices(model, Product)(idx)
        if torch.allclose(again, model(idx), rtol=1e-4, atol=1e-5, equal_nan=True):
            return None
    return "the MLP or head of model/gpt2.py is not the one in model/matrices.py"


class Product(nn.Module):
    """x (..., in) -> (..., out) through a matrix as it is."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activate: Activation
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.activate = weight, bias, activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        return self.activate(y) if self.activate else y


FUSED: dict[Activation, tuple[str, str]] = {None: ("none", ""), gelu: ("gelu", "tanh")}
"""What oneDNN calls it: an operator and its algorithm. One without a row follows the product."""


class PackedLinear(nn.Module):
    """x (..., in) -> (..., out) through a matrix in oneDNN's layout. Computes in the type of its
    weight, and answers in that of x."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activate: Activation
    ) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self.fused = FUSED.get(activate, FUSED[None])
        self.activate = None if activate in FUSED else activate
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name, algorithm = self.fused
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.packed, self.bias, name, [], algorithm
        )
        y = y if self.activate is None else self.activate(y)
        return y.to(x.dtype)


def why_not_packed(model: GPT2) -> str | None:
    """A reason why `packed` cannot serve this model on this machine."""
    weight = model.wte.weight
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return "packed weights are for an x86 CPU"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this PyTorch has no products with packed weights"
    return why_not_rebuilt(model)


def packed(model: GPT2, dtype: torch.dtype = torch.float32) -> GPT2:
    """The model with its matrices laid out for this CPU, in `dtype`; the rest computes in fp32."""
    return with_matrices(
        model,
        lambda weight, bias, activate: PackedLinear(
            weight.to(dtype), None if bias is None else bias.to(dtype), activate
        ),
    )


def for_inference(model: GPT2, precision: str = "no") -> GPT2:
    """The fastest exact form of a model: `packed` where this machine can, else as it is. Under
    autocast, whose types the packed products do not follow, it stays as it is."""
    exact = precision == "no" and model.wte.weight.dtype == torch.float32
    return packed(model) if exact and why_not_packed(model) is None else model
