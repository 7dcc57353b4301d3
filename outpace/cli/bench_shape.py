"""The shape of a benchmark's model; small by default on a CPU."""

from outpace.config.presets import GPT2_CONTEXT, size
from outpace.config.schema import Auto
from outpace.core.errors import UsageError

Shape = tuple[int, int, int, int]
"""Layers, heads, channels and context."""


def shape_of(
    asked: tuple[int | Auto, ...], model_size: str, cpu_shape: Shape, *, on_gpu: bool
) -> Shape:
    """Each number as asked for, else from the size, else the default for the device. UsageError if
    the heads do not divide the channels."""
    chosen = cpu_shape
    if model_size != "auto" or on_gpu:
        preset = size("124M" if model_size == "auto" else model_size)
        chosen = (preset.n_layer, preset.n_head, preset.n_embd, GPT2_CONTEXT)
    L, H, C, T = (c if a == "auto" else a for a, c in zip(asked, chosen, strict=True))
    if C % H:
        raise UsageError(
            "BAD-VALUE", f"--n_head {H} does not divide --n_embd {C}", do="choose another --n_head"
        )
    return L, H, C, T
