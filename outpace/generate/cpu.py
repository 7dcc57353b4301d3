"""Faster products for generation on a CPU, where a step has few rows: by oneDNN, which gives the
same tokens, or in int8, which is an approximation and asked for by name only.

MKL, PyTorch's own way, is made for many rows (docs/benchmarks.md). LayerNorm, attention and the
residual stay as they are.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from outpace.core.errors import UsageError
from outpace.model.gpt2 import GPT2, MLP

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], nn.Module]
"""(weight (out, in), bias (out,) or None) -> x (..., in) -> (..., out)"""


class OneDNNLinear(nn.Module):
    """x (..., in) -> (..., out) by oneDNN, over the weight as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return y


class Int8Linear(nn.Module):
    """x (..., in) -> (..., out) through an int8 matrix: a quarter of the bytes to read. Each row of
    it is scaled, activations are scaled as they come, a scale a call (PyTorch's dynamic
    quantisation, over FBGEMM)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny).double()
        rows = torch.zeros(len(weight), dtype=torch.int64)
        q = torch.quantize_per_channel(weight, scale, rows, axis=0, dtype=torch.qint8)
        self.packed: Any = torch.ops.quantized.linear_prepack(q, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, True)
        return y


class FastMLP(nn.Module):
    """An MLP with other products."""

    def __init__(self, mlp: MLP, make: MakeLinear) -> None:
        super().__init__()
        self.c_fc = make(mlp.c_fc.weight, mlp.c_fc.bias)
        self.c_proj = make(mlp.c_proj.weight, mlp.c_proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return y


class FastGPT2(GPT2):
    """A GPT-2 with other products. `wte` stays what it is for the embedding."""

    head: nn.Module

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., C) -> logits (..., V), padding at -inf."""
        logits: torch.Tensor = self.head(hidden)
        logits[..., self.shape.vocab_size :] = float("-inf")
        return logits


def onednn(model: GPT2) -> GPT2:
    """The same model, sharing its weights, with oneDNN's products where they serve: in fp32 on the
    CPU of a PyTorch that has them. Elsewhere the model itself."""
    weight = model.wte.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return model
    return _with(model, OneDNNLinear) if torch.backends.mkldnn.is_available() else model


def int8(model: GPT2) -> GPT2:
    """The model with int8 matrices, on the CPU. UsageError where PyTorch has no such kernels."""
    if "x86" not in torch.backends.quantized.supported_engines:
        raise UsageError("NO-INT8", "this PyTorch has no int8 kernels", do="use --weights float32")
    if model.wte.weight.device.type != "cpu":
        raise UsageError("NO-INT8", "int8 weights are for a CPU", do="add --device cpu")
    torch.backends.quantized.engine = "x86"
    return _with(model, Int8Linear)


@torch.no_grad()
def _with(model: GPT2, make: MakeLinear) -> GPT2:
    """The model with its products made by `make`; what is not replaced is shared."""
    fast = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    fast.__class__ = FastGPT2
    assert isinstance(fast, FastGPT2)
    fast.head = make(model.wte.weight, None)
    for block in fast.h:
        block.mlp = FastMLP(cast(MLP, block.mlp), make)
        for name in ("c_attn", "c_proj"):
            linear = getattr(block.attn, name)
            setattr(block.attn, name, make(linear.weight, linear.bias))
    return fast.eval()
