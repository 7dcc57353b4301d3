"""A GPT-2 for inference whose matrices are stored in another form, and the form that is exact: as
oneDNN lays them out for this CPU.

torch's own products read a weight as PyTorch stores it and, at one row, on one thread. A weight
that is laid out beforehand is read in order by all threads, and bias and GELU are done where the
product is (`torch/_inductor` does the same to a frozen, compiled model). Only the order in which
products are added up differs.
"""

import platform
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from outpace.model.gpt2 import GPT2, Block
from outpace.ops.cross_entropy import mask_padding
from outpace.ops.mlp import gelu

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
    with torch.device("meta"):
        new = InferenceGPT2(model.shape, model.compute)
    _share(model, new, but=("h",))
    new.head = make(model.wte.weight, None, None)
    for block, old in zip(new.h, cast(list[Block], model.h), strict=True):
        _share(old, block, but=("attn", "mlp"))
        attn = cast(nn.Module, block.attn)
        _share(old.attn, attn, but=("c_attn", "c_proj"))
        for name in ("c_attn", "c_proj"):
            linear = getattr(old.attn, name)
            setattr(attn, name, make(linear.weight, linear.bias, None))
        block.mlp = nn.Sequential(
            make(old.mlp.c_fc.weight, old.mlp.c_fc.bias, gelu),
            make(old.mlp.c_proj.weight, old.mlp.c_proj.bias, None),
        )
    return new.eval()


def _share(old: nn.Module, new: nn.Module, *, but: Sequence[str]) -> None:
    """Give `new` the modules of `old`, except those with the names `but`."""
    for name, module in old.named_children():
        if name not in but:
            setattr(new, name, module)


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
    return None


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
