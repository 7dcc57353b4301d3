"""A GPT-2 whose matrices are int8, for generation on an x86 CPU: a quarter of the bytes to read a
token, which is what bounds it. An approximation, and asked for by name only.

Each row of a matrix is scaled to int8; activations are scaled as they come, a scale a call
(PyTorch's dynamic quantisation, over FBGEMM). LayerNorm, attention and the residual stay fp32.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from outpace.core.errors import UsageError
from outpace.model.gpt2 import GPT2, MLP


class Int8Linear(nn.Module):
    """x (..., in) -> (..., out) through an int8 matrix."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny).double()
        rows = torch.zeros(len(weight), dtype=torch.int64)
        q = torch.quantize_per_channel(weight, scale, rows, axis=0, dtype=torch.qint8)
        self.packed: Any = torch.ops.quantized.linear_prepack(q, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, True)
        return y


class Int8MLP(nn.Module):
    """An MLP whose two matrices are int8."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.c_fc = Int8Linear(mlp.c_fc.weight, mlp.c_fc.bias)
        self.c_proj = Int8Linear(mlp.c_proj.weight, mlp.c_proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return y


class Int8GPT2(GPT2):
    """A GPT-2 that computes with int8 matrices. `wte` stays fp32 for the embedding."""

    head: Int8Linear

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., C) -> logits (..., V), padding at -inf."""
        logits: torch.Tensor = self.head(hidden)
        logits[..., self.shape.vocab_size :] = float("-inf")
        return logits


@torch.no_grad()
def int8(model: GPT2) -> GPT2:
    """The model with int8 matrices, on the CPU. UsageError where PyTorch has no such kernels."""
    if "x86" not in torch.backends.quantized.supported_engines:
        raise UsageError("NO-INT8", "this PyTorch has no int8 kernels", do="use --weights float32")
    if next(model.parameters()).device.type != "cpu":
        raise UsageError("NO-INT8", "int8 weights are for a CPU", do="add --device cpu")
    torch.backends.quantized.engine = "x86"
    small = copy.deepcopy(model)
    small.__class__ = Int8GPT2
    assert isinstance(small, Int8GPT2)
    small.head = Int8Linear(model.wte.weight)
    for block in small.h:
        block.mlp = Int8MLP(cast(MLP, block.mlp))
        for name in ("c_attn", "c_proj"):
            linear = getattr(block.attn, name)
            setattr(block.attn, name, Int8Linear(linear.weight, linear.bias))
    return small.eval()
