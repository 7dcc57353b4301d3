"""Validation loss on the datasets of a run: on each by itself, and their mean, weighted by each
dataset's share of the samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from outpace.data.mixture import Mixture
from outpace.data.stream import TokenStream
from outpace.evals.loss import Loss

Score = Callable[[TokenStream, int], Loss | None]
"""(validation split, tokens to score) -> the loss, or None if told to stop."""


@dataclass(frozen=True)
class Validation:
    """The mean loss, and the loss on each dataset."""

    loss: Loss
    by_dataset: dict[str, Loss]

    def record(self) -> dict[str, Any]:
        """For evals.jsonl; `by_dataset` only if there are several datasets."""
        record = self.loss.record()
        if len(self.by_dataset) > 1:
            record["by_dataset"] = {name: one.loss for name, one in self.by_dataset.items()}
        return record


def validate(score: Score, mixture: Mixture, tokens: int) -> Validation | None:
    """Score about `tokens` tokens, divided by their shares among the datasets that have a
    validation split, always the first ones. None if told to stop, or if there are no tokens."""
    names = [dataset.name for dataset in mixture.datasets]
    scored = [
        (dataset, share)
        for dataset, share in zip(mixture.datasets, mixture.shares, strict=True)
        if dataset.tokens("val") > 1 and tokens > 0
    ]
    shares = [float(share) for _, share in scored]
    whole = sum(share for _, share in scored)
    found = {}
    for dataset, share in scored:
        stream = dataset.stream("val")
        wanted = max(1, int(tokens * share / whole))
        loss = score(stream, min(wanted, len(stream) - 1))
        stream.close()
        if loss is None:
            return None
        same = names.count(dataset.name) > 1
        found[str(dataset.folder.resolve()) if same else dataset.name] = loss
    return Validation(mean(list(found.values()), shares), found) if found else None


def mean(losses: Sequence[Loss], shares: Sequence[float]) -> Loss:
    """The mean of the losses, weighted by the datasets' shares of the samples."""
    if len(losses) == 1:
        return losses[0]
    weights = [share / sum(shares) for share in shares]
    nats = sum(w * one.loss for w, one in zip(weights, losses, strict=True))
    bits = nats / math.log(2)
    bytes_per_token = sum(
        w * one.loss / math.log(2) / one.bits_per_byte
        for w, one in zip(weights, losses, strict=True)
        if one.bits_per_byte
    )
    return Loss(
        loss=nats,
        perplexity=math.exp(min(nats, 700.0)),
        bits_per_byte=bits / bytes_per_token if bytes_per_token else 0.0,
        tokens_scored=sum(one.tokens_scored for one in losses),
    )
