"""Log-likelihoods of continuations. Only the positions that predict a continuation go through the
output head, which is most of the work of a small model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from outpace.evals import KeepGoing, LanguageModel, always
from outpace.runtime.precision import autocast


@dataclass(frozen=True)
class Request:
    """Score `continuation` after `context`, both token ids; the context is never empty."""

    context: list[int]
    continuation: list[int]


@torch.inference_mode()
def log_likelihoods(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    device: torch.device,
    precision: str,
    batch_tokens: int = 4096,
    keep_going: KeepGoing = always,
) -> list[float] | None:
    """Sum of log p(token | all before it) in nats over each request's continuation.

    Requests longer than the model's context lose the start of theirs. Rows of similar length share
    a batch of about `batch_tokens`; the padding behind a row cannot reach it, attention is causal.
    """
    rows = [_row(r, model.shape.context) for r in requests]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    scores = [0.0] * len(rows)
    for chosen in _batches(order, [len(row) for row, _ in rows], batch_tokens):
        if not keep_going():
            return None
        longest = _round_up(max(len(rows[i][0]) for i in chosen), model.shape.context, device)
        padded = [rows[i][0] + [0] * (longest - len(rows[i][0])) for i in chosen]
        idx = torch.tensor(padded, device=device)  # (B, T)
        spans = [range(rows[i][1] - 1, len(rows[i][0]) - 1) for i in chosen]
        b = torch.tensor([j for j, span in enumerate(spans) for _ in span], device=device)
        t = torch.tensor([p for span in spans for p in span], device=device)
        with autocast(device, precision):
            logits = model.logits(model.hidden(idx[:, :-1])[b, t])  # (N, V)
        log_p = logits.float().log_softmax(-1).gather(-1, idx[b, t + 1, None]).squeeze(-1)
        sums = torch.zeros(len(chosen), dtype=torch.float64, device=device)
        sums.index_add_(0, b, log_p.double())
        for i, score in zip(chosen, sums.tolist(), strict=True):
            scores[i] = score
    return scores


def _round_up(length: int, context: int, device: torch.device) -> int:
    """On a GPU, few different shapes: cuDNN's attention builds a plan for each, in some 30 ms."""
    multiple = 32 if device.type == "cuda" else 1
    return min(context, -(-(length - 1) // multiple) * multiple) + 1


def _row(request: Request, context: int) -> tuple[list[int], int]:
    """The tokens to read, at most `context` + 1, and where the continuation begins in them."""
    row = (request.context + request.continuation)[-(context + 1) :]
    return row, max(1, len(row) - len(request.continuation))


def _batches(order: list[int], lengths: list[int], batch_tokens: int) -> Iterable[list[int]]:
    batch: list[int] = []
    for i in order:  # by rising length, so the newest row is the longest
        if batch and (len(batch) + 1) * lengths[i] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
