"""What a plan may ask of this machine: which kernels run here and which are fastest, and whether
torch.compile works. Found out by probing and measuring.
"""

import functools

import torch

from outpace.config.presets import GPT2Shape
from outpace.ops import attention, cross_entropy
from outpace.ops import fp8 as fp8_ops
from outpace.runtime.compile import why_not as compile_why_not
from outpace.runtime.precision import DTYPES
from outpace.train.plan import Capabilities


def capabilities(device: torch.device) -> Capabilities:
    """What this machine can do; nothing is probed before the plan asks."""

    def backend(
        name: str, precision: str, shape: GPT2Shape, masked: bool
    ) -> tuple[str | None, str]:
        if masked and (no_mask := attention.document_mask_why_not(name)):
            return no_mask, ""
        module, where = attention.BACKENDS.load(name), (device, DTYPES[precision], shape.head_dim)
        with_mask = {"masked": True} if masked else {}  # other backends have no such argument
        return module.why_not(*where), module.kernel(*where, shape.dropout, **with_mask)

    def fastest_attention(precision: str, shape: GPT2Shape) -> tuple[str, str]:
        H, T, D = shape.n_head, shape.context, shape.head_dim
        return attention.choose(device, DTYPES[precision], H, T, D)

    def fastest_cross_entropy(
        precision: str, shape: GPT2Shape, compiled: bool, fp8: bool
    ) -> tuple[str, str]:
        C, V = shape.n_embd, shape.padded_vocab_size
        return cross_entropy.choose(device, DTYPES[precision], C, V, compiled, fp8)

    def cross_entropy_why_not(name: str, precision: str, compiled: bool, fp8: bool) -> str | None:
        why: str | None = cross_entropy.LOSSES.load(name).why_not(
            device, DTYPES[precision], compiled, fp8
        )
        return why

    def fp8_why_not(precision: str, shape: GPT2Shape) -> str | None:
        return fp8_ops.why_not(device, DTYPES[precision], shape.n_embd, shape.padded_vocab_size)

    return Capabilities(
        attention=backend,
        compile_why_not=functools.cache(lambda: compile_why_not(device)),
        fastest_attention=fastest_attention,
        fastest_cross_entropy=fastest_cross_entropy,
        cross_entropy_why_not=cross_entropy_why_not,
        fp8_why_not=fp8_why_not,
    )
