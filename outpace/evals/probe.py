"""The probe: the loss on a fixed sequence, which needs no dataset. If a loaded checkpoint has the
same loss as when it was saved, it was read correctly and the model code has not changed.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from outpace.runtime.switches import restored_fp32_precision, use_tf32

PROBE_TOKENS = 64
RELATIVE_TOLERANCE = 1e-4
"""How far two machines may differ: a hundred times the rounding error of the 124M model's fp32
probe (1e-6 from its value in fp64), the size of what another order of additions can change."""
_M64 = (1 << 64) - 1


@torch.inference_mode()
def probe_loss(model: nn.Module, vocab_size: int, context: int) -> float:
    """Mean nats per token over min(context, 64) targets, in fp32 on the model's device.

    `model(idx, targets)` is the summed loss, as that of `GPT2`. Leaves the model's mode, torch's
    settings and its random numbers as they were.
    """
    device = next(model.parameters()).device
    length = min(context, PROBE_TOKENS)
    ids = torch.tensor([probe_tokens(vocab_size, length + 1)], device=device)  # (1, T + 1)
    with _exact(model), torch.autocast(device.type, enabled=False):
        return float(model(ids[:, :-1], ids[:, 1:])) / length


def is_as_recorded(loss: float, recorded: Any) -> bool:
    """Whether a probe's loss equals the one that was saved with a checkpoint."""
    return isinstance(recorded, int | float) and math.isclose(
        loss, recorded, rel_tol=RELATIVE_TOLERANCE
    )


def changed_since(
    model: nn.Module, vocab_size: int, context: int, state: dict[str, Any]
) -> str | None:
    """How a model with a checkpoint's weights differs from the one that was saved, because its code
    has changed. None if it does not, or if the checkpoint's `state` has no probe."""
    recorded = state.get("probe_loss")
    if not isinstance(recorded, int | float):
        return None
    loss = probe_loss(model, vocab_size, context)
    if is_as_recorded(loss, recorded):
        return None
    return (
        f"the model computes something else than when this was saved: its loss on a fixed sequence "
        f"is {loss:.7g}, and was {recorded:.7g}"
    )


def probe_tokens(vocab_size: int, length: int) -> list[int]:
    """`length` ids below `vocab_size`: SplitMix64 of each position (Steele et al. 2014, "Fast
    splittable pseudorandom number generators", figure 17)."""
    return [_splitmix64(i) % vocab_size for i in range(length)]


def _splitmix64(i: int) -> int:
    z = (i + 1) * 0x9E3779B97F4A7C15 & _M64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _M64
    return z ^ z >> 31


@contextlib.contextmanager
def _exact(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and whole fp32 products inside, what was before after."""
    training = model.training
    model.eval()
    try:
        with restored_fp32_precision():
            use_tf32(False)
            yield
    finally:
        model.train(training)
