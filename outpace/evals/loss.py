"""Validation loss over the first tokens of the split, in windows that do not overlap: the same
tokens for any batch size and number of processes. Also in bits per byte, which does not depend on
the tokenizer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from outpace.core.errors import OutOfMemory
from outpace.evals import KeepGoing, always
from outpace.evals.memory import in_halves, no_memory
from outpace.runtime.distributed import Group
from outpace.runtime.precision import autocast

BATCH_TOKENS = {"cuda": 16_384, "cpu": 4096}
"""Tokens scored at once: their logits take about 2 GiB at most on a CPU, 8 on a GPU."""


@dataclass(frozen=True)
class Loss:
    """Mean loss over `tokens_scored` targets."""

    loss: float
    """Nats per token."""
    perplexity: float
    bits_per_byte: float
    tokens_scored: int

    def record(self) -> dict[str, Any]:
        return {"task": "validation", **asdict(self)}


@torch.inference_mode()
def validation_loss(
    loss_sum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    read: Callable[[int, npt.NDArray[np.uint16]], None],
    *,
    tokens: int,
    context: int,
    token_bytes: list[int],
    precision: str,
    group: Group,
    batch_size: int | None = None,
    keep_going: KeepGoing = always,
) -> Loss | None:
    """Score `tokens` targets. `loss_sum(idx, targets)` is the model's summed loss; `read(start,
    out)` fills `out` from the split's stream. None if told to stop. A batch that does not fit in
    memory is scored in halves; OutOfMemory, in all processes, if a single window does not fit."""
    width = min(context, tokens)
    device = group.device
    batch_size = batch_size or max(1, BATCH_TOKENS[device.type] // width)
    windows = tokens // width
    bytes_of = np.asarray(token_bytes, np.int64)
    ranks = group.ranks
    total = torch.zeros(4, dtype=torch.float64, device=device)  # nats, bytes, interrupted, failed

    def score(chosen: Sequence[int]) -> None:
        rows = np.empty((len(chosen), width + 1), np.uint16)
        for row, window in zip(rows, chosen, strict=True):
            read(window * width, row)
        idx = torch.from_numpy(rows.astype(np.int64)).to(device)  # (B, T + 1)
        with autocast(device, precision):
            nats = loss_sum(idx[:, :-1], idx[:, 1:])
        total[0] += nats.double()
        total[1] += int(bytes_of[rows[:, 1:]].sum())

    mine = range(ranks.rank, windows, ranks.world_size)
    for first in range(0, len(mine), batch_size):
        if not keep_going(first / len(mine)):
            total[2] += 1
            break
        try:
            in_halves(score, mine[first : first + batch_size])
        except OutOfMemory:  # raised below, once the waiting processes know
            total[3] += 1
            break
    nats, n_bytes, interrupted, failed = group.sum(total).tolist()
    if failed:
        raise no_memory()
    if interrupted:
        return None
    mean = nats / (windows * width)
    return Loss(
        loss=mean,
        perplexity=math.exp(min(mean, 700.0)),
        bits_per_byte=nats / math.log(2) / max(1.0, n_bytes),
        tokens_scored=windows * width,
    )
