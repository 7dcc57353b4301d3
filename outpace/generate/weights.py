"""The weight types for generation.

int8 is for an x86 CPU: a quarter of the bytes to read per token, which limits the speed. Each row
of a matrix has its own scale; activations are scaled as they come, one scale per call (PyTorch's
dynamic quantisation, over FBGEMM), so a sample depends on what else is drawn with it. LayerNorm,
attention and the residual stay fp32.
"""

import warnings
from typing import Any

import torch
from torch import nn

from outpace.core.errors import UsageError
from outpace.model.gpt2 import GPT2
from outpace.model.matrices import (
    Activation,
    for_inference,
    packed,
    why_not_packed,
    why_not_rebuilt,
    with_matrices,
)


def with_weights(model: GPT2, weights: str) -> GPT2:
    """`float32`: the model in its fastest exact form on this machine. `bfloat16` and `int8` read a
    half and a quarter of the bytes; they are approximations, on a CPU only (UsageError elsewhere).
    """
    if weights == "int8":
        return int8(model)
    if weights == "bfloat16":
        reason = why_not_packed(model)
        if reason is None and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            reason = "this CPU lacks the instructions for bfloat16"
        if reason is not None:
            raise UsageError("NO-BFLOAT16", reason, do="use --weights float32")
        return packed(model, torch.bfloat16)
    return for_inference(model)


class Int8Linear(nn.Module):
    """x (..., in) -> (..., out) through an int8 matrix."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, activate: Activation = None
    ) -> None:
        super().__init__()
        self.activate = activate
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny).double()
        rows = torch.zeros(len(weight), dtype=torch.int64)
        # PyTorch 2.13: deprecated, no successor yet.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            q = torch.quantize_per_channel(weight, scale, rows, axis=0, dtype=torch.qint8)
        self.packed: Any = torch.ops.quantized.linear_prepack(q, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, True)
        return self.activate(y) if self.activate else y


def int8(model: GPT2) -> GPT2:
    """The model with int8 matrices, on the CPU. UsageError if PyTorch has no such kernels."""
    if "x86" not in torch.backends.quantized.supported_engines:
        raise UsageError("NO-INT8", "this PyTorch has no int8 kernels", do="use --weights float32")
    if next(model.parameters()).device.type != "cpu":
        raise UsageError("NO-INT8", "int8 weights are for a CPU", do="add --device cpu")
    if reason := why_not_rebuilt(model):
        raise UsageError("NO-INT8", reason, do="use --weights float32")
    torch.backends.quantized.engine = "x86"
    return with_matrices(model, Int8Linear)
