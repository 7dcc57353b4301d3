"""The attention table. A backend is a module, or an object, with three functions:

    attend(q, k, v, *, dropout_p) -> (B, H, T, D), from q (B, H, T, D), k and v (B, H, S, D)
    why_not(device, dtype, head_dim) -> why it cannot be used there, or None
    kernel(device, dtype, head_dim, dropout_p) -> name of the kernel that runs

A backend that can keep the documents of a sequence apart has a fourth, whose result it takes:

    document_mask(documents) -> mask, from documents (B, T), equal within a document
    attend(..., mask), kernel(..., masked)

What a backend cannot do (a KV cache, dropout, fp32) it passes on to `sdpa`; its docstring says so.
q, k and v may be views of one tensor, (B, T, H, D) transposed. Attention is causal, and the last
query is aligned with the last key: query t sees keys up to S - T + t.
Every backend is tested, forward and backward, against `reference`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from outpace.core.registry import Registry
from outpace.ops import fastest

Attend = Callable[..., torch.Tensor]

BACKENDS = Registry(
    "attention backend",
    {
        "sdpa": "outpace.ops.attention.sdpa",
        "cudnn": "outpace.ops.attention.fused:cudnn",
        "flash": "outpace.ops.attention.fused:flash",
        "efficient": "outpace.ops.attention.fused:efficient",
        "flex": "outpace.ops.attention.flex",
        "flash_attn": "outpace.ops.attention.flash_attn",
        "math": "outpace.ops.attention.fused:math",
        "eager": "outpace.ops.attention.eager",
        "reference": "outpace.ops.attention.reference",
    },
)

MATERIALISING = ("math", "eager", "reference")
"""Backends that always store the T x S matrix."""

MEASURED_BATCHES = (32, 8)
"""Batch sizes to measure with, the second if the first does not fit: large enough that a call takes
longer on the device than on the host. With 12 heads of 1,024 tokens the reference needs 8 GB."""


def is_materialised(kernel: str) -> bool:
    """Whether the kernel of this name stores the T x S matrix: plain operators do, and PyTorch's
    fallback."""
    return kernel in ("MATH", "ERROR") or kernel.startswith("materialised")


def document_mask_why_not(name: str) -> str | None:
    """Why a backend cannot keep documents apart, or None."""
    if hasattr(BACKENDS.load(name), "document_mask"):
        return None
    able = [n for n in BACKENDS.names() if hasattr(BACKENDS.load(n), "document_mask")]
    return f"its kernel takes no such mask; {', '.join(able)} do"


def choose(device: torch.device, dtype: torch.dtype, H: int, T: int, D: int) -> tuple[str, str]:
    """The backend for training (B, H, T, D) without dropout when none was asked for, and why.
    On a GPU the fused rows are measured, once per machine and shape."""
    if device.type != "cuda":
        return "sdpa", f"PyTorch has one fused kernel on a {device.type.upper()}"
    fused = [name for name in BACKENDS.names() if name not in MATERIALISING]
    names = [name for name in fused if BACKENDS.load(name).why_not(device, dtype, D) is None]
    if len(names) < 2:
        return "sdpa", "nothing else can serve here"
    for B in MEASURED_BATCHES:
        shape = {"B": B, "H": H, "T": T, "D": D}
        prepare = partial(_candidates, device, dtype, shape, names)
        if found := fastest.fastest("attention", device, dtype, shape, names, prepare):
            return found.choice, found.reason()
    return "sdpa", "no backend could be measured; PyTorch chooses"


def _candidates(
    device: torch.device, dtype: torch.dtype, shape: dict[str, int], names: list[str]
) -> tuple[fastest.Work, dict[str, fastest.Work]]:
    """Forward and backward of the reference and of each backend, on views like the model's."""
    B, H, T, D = shape.values()
    generator = torch.Generator(device).manual_seed(0)
    made = torch.randn(4, B, T, H, D, device=device, dtype=dtype, generator=generator)
    q, k, v, upstream = (x.transpose(1, 2) for x in made)
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def work(name: str) -> Sequence[torch.Tensor]:
        out = BACKENDS.load(name).attend(*inputs, dropout_p=0.0)
        return out, *torch.autograd.grad(out, inputs, upstream)

    return partial(work, "reference"), {name: partial(work, name) for name in names}
