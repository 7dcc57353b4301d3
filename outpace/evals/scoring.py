"""Log-likelihoods of continuations. A context is read once for all its continuations, many
questions share a row (`packing.py`), and only the positions that predict a continuation go through
the output head, which is most of the work of a small model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from outpace.core.errors import OutOfMemory
from outpace.evals import KeepGoing, LanguageModel, Visible, always
from outpace.evals.memory import in_halves, no_memory
from outpace.evals.packing import UNPADDED, Batch, Request, Tree, arrays, pack, trees, unpadded
from outpace.ops.cross_entropy import token_losses
from outpace.runtime.distributed import Group
from outpace.runtime.precision import autocast

BATCH_TOKENS = {"cuda": 32_768, "cpu": 4096}
"""Tokens read at once, by device."""
HEAD_ROWS = {"cuda": 8192, "cpu": 128}
"""Positions that go through the head at once, by device. Their logits take at most 3.3 GB on a GPU
and 26 MB on a CPU, about what its last-level cache holds."""

T = TypeVar("T")
Hidden = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Scores:
    """The scores of each request's continuations, in order."""

    log_likelihoods: list[list[float]]
    """Sum of log p(token | all before it) in nats."""
    greedy: list[list[bool]]
    """Whether every token was the most likely one; all False unless asked for."""
    forward_tokens: int
    """Tokens read by all processes together, padding included."""


def compiled_hidden(model: LanguageModel) -> Hidden:
    """The model's hidden states, compiled for each of the few shapes that `score` reads."""
    compiled: Hidden = torch.compile(model.hidden, dynamic=False)
    return compiled


@torch.inference_mode()
def score(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    precision: str,
    group: Group,
    greedy: bool = False,
    batch_tokens: int | None = None,
    keep_going: KeepGoing = always,
    hidden: Hidden | None = None,
) -> Scores | None:
    """Score all requests; each process scores its share and gets all results. None if one was told
    to stop. `hidden` may be a compiled version of the model's, since there are only few shapes.

    A request longer than the model's context loses the start of its own context. A batch that does
    not fit in memory is scored in halves; OutOfMemory, in all processes, if a row does not fit.
    """
    ranks, device = group.ranks, group.device
    counts = [len(r.continuations) for r in requests]
    # nats and misses of each continuation; tokens read, processes that stopped or failed
    totals = torch.zeros(2 * sum(counts) + 3, dtype=torch.float64, device=device)
    nats, misses, status = totals.split([sum(counts), sum(counts), 3])
    every = trees(requests, model.shape.context)
    mine: list[Tree] = sorted(every, key=len)[ranks.rank :: ranks.world_size]
    budget = batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    read = hidden or model.hidden

    def work(width: int, rows: Sequence[list[Tree]]) -> None:
        batch = Batch(width, list(rows))
        log_p, missed, to = _predict(model, read, batch, device, precision, greedy)
        nats.index_add_(0, to, log_p)
        misses.index_add_(0, to, missed)
        status[0] += batch.tokens

    # A GPU or a compiled model needs few shapes; on a CPU any shape will do, but padding costs.
    free = device.type == "cpu" and hidden is None
    total, done = sum(map(len, mine)), 0
    for batch in unpadded(mine, budget) if free else pack(mine, budget):
        if not keep_going(done / total):
            status[1] += 1
            break
        done += sum(len(tree) for row in batch.rows for tree in row)
        try:
            in_halves(partial(work, batch.width), batch.rows)
        except OutOfMemory:  # raised below, once the waiting processes know
            status[2] += 1
            break
    values = group.sum(totals).tolist()
    tokens, stopped, failed = values[-3:]
    if failed:
        raise no_memory()
    if stopped:
        return None
    n = sum(counts)
    hits = [bool(greedy and not m) for m in values[n : 2 * n]]
    return Scores(_parted(values[:n], counts), _parted(hits, counts), int(tokens))


def _predict(
    model: LanguageModel,
    read: Hidden,
    batch: Batch,
    device: torch.device,
    precision: str,
    greedy: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each predicted token (N,): log p, 1 if another was likelier, the index of its score."""
    numbers = arrays(batch)
    idx, positions, question, branch = torch.from_numpy(numbers.layout).to(device)  # (B, T)
    places, tokens, to = torch.from_numpy(numbers.predictions).to(device)  # (N,)
    if batch.width == UNPADDED:  # one row, with a mask for each text in it
        parts = zip(question.split(batch.lengths, 1), branch.split(batch.lengths, 1), strict=True)
        visible: Visible = [_visible(*part) for part in parts]
    else:
        visible = _visible(question, branch)  # (B, T, T)
    log_p = torch.zeros(len(places), dtype=torch.float64, device=device)
    missed = torch.zeros_like(log_p)
    rows = HEAD_ROWS.get(device.type, HEAD_ROWS["cpu"])
    with autocast(device, precision):
        h = read(idx, positions=positions, visible=visible).flatten(0, 1)  # (B T, C)
        for first in range(0, len(places), rows):
            chunk = slice(first, first + rows)
            logits = model.logits(h[places[chunk]])  # (n, V)
            log_p[chunk] = -token_losses(logits, tokens[chunk]).double()
            if greedy:  # not argmax, which on a CPU takes bf16 ten times as long
                missed[chunk] = (logits.max(-1).indices != tokens[chunk]).double()
    return log_p, missed, to


def _visible(question: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """question, branch (B, T) -> (B, T, T): a token sees the earlier tokens of its own question
    that belong to the context or to its own branch."""
    T = question.size(1)
    before = torch.ones(T, T, dtype=torch.bool, device=question.device).tril()
    same = question[:, :, None] == question[:, None, :]
    shared = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return before & same & shared


def _parted(values: list[T], counts: list[int]) -> list[list[T]]:
    """Split `values` into lists with these lengths."""
    out, at = [], 0
    for n in counts:
        out.append(values[at : at + n])
        at += n
    return out
