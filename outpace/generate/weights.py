"""The weight types for generation."""

import torch

from outpace.core.errors import UsageError
from outpace.generate.int8 import int8
from outpace.model.gpt2 import GPT2
from outpace.model.matrices import for_inference, packed, why_not_packed


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
