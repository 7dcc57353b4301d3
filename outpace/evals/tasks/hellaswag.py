"""HellaSwag (Zellers et al. 2019): which of four endings follows? 10,042 validation questions.

Protocol `completion`, as in karpathy/build-nanogpt, hellaswag.py: the raw `ctx`, then a space and
the ending; the log-likelihoods of the ending's tokens are summed (acc) or averaged (acc_norm), and
the highest wins.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outpace.core.errors import DataError
from outpace.evals import KeepGoing, LanguageModel, always
from outpace.evals.scoring import Request, log_likelihoods
from outpace.runtime.distributed import Group
from outpace.tokenizer import Tokenizer

CONTENT_SHA256 = "dac2bc3c98631113d056b1bc1e814c5d66a9fc3794ceb0714bfc85c60dcc8b98"
"""Of the validation split, over [ind, ctx, endings, label] of each row; see `content_hash`."""
QUESTIONS = 10_042


@dataclass(frozen=True)
class Question:
    """One row of the official file."""

    ind: int
    ctx: str
    endings: list[str]
    label: int


@dataclass(frozen=True)
class Answer:
    """How a model answered one question."""

    ind: int
    label: int
    pred: int
    """Ending with the highest summed log-likelihood."""
    pred_norm: int
    """Ending with the highest log-likelihood a token."""
    log_likelihoods: list[float]


def load(path: Path, *, complete: bool = True) -> list[Question]:
    """Read the official JSONL. With `complete`, refuse a file that is not the validation split."""
    try:
        questions = parse(path.read_bytes())
    except OSError as error:
        raise DataError(
            "HELLASWAG", f"cannot read {path}: {error.strerror}", do="outpace prepare hellaswag"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "HELLASWAG",
            f"{path} is not HellaSwag ({type(error).__name__}: {error})",
            do="outpace prepare hellaswag",
        ) from error
    if complete and content_hash(questions) != CONTENT_SHA256:
        raise DataError(
            "HELLASWAG",
            f"{path} is not the whole, unchanged validation split of {QUESTIONS:,} questions",
            do="outpace prepare hellaswag",
        )
    return questions


def parse(data: bytes) -> list[Question]:
    """Questions of a JSONL file's bytes; ValueError, KeyError or TypeError where it is not one."""
    rows = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    return [
        Question(int(r["ind"]), str(r["ctx"]), [str(e) for e in r["endings"]], int(r["label"]))
        for r in rows
    ]


def content_hash(questions: Sequence[Question]) -> str:
    """SHA-256 of the questions, independent of file format and of fields we do not use."""
    digest = hashlib.sha256()
    for q in questions:
        line = json.dumps(
            [q.ind, q.ctx, q.endings, q.label], ensure_ascii=False, separators=(",", ":")
        )
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def subset(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """`limit` questions spread evenly over the split (its halves come from two sources)."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[i] for i in np.linspace(0, len(questions) - 1, limit).round().astype(int)]


def answer(
    model: LanguageModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    device: torch.device,
    precision: str,
    keep_going: KeepGoing = always,
) -> list[Answer] | None:
    """Answer questions in the completion protocol; None if told to stop."""
    requests = [
        Request(tokenizer.encode(q.ctx) or [tokenizer.end_of_text], tokenizer.encode(" " + ending))
        for q in questions
        for ending in q.endings
    ]
    scores = log_likelihoods(
        model, requests, device=device, precision=precision, keep_going=keep_going
    )
    if scores is None:
        return None
    answers, at = [], 0
    for q in questions:
        n = len(q.endings)
        sums = scores[at : at + n]
        means = [s / len(r.continuation) for s, r in zip(sums, requests[at : at + n], strict=True)]
        answers.append(Answer(q.ind, q.label, _argmax(sums), _argmax(means), sums))
        at += n
    return answers


def evaluate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    device: torch.device,
    precision: str,
    group: Group,
    keep_going: KeepGoing = always,
) -> tuple[dict[str, Any], list[Answer]] | None:
    """Score a model over all processes: the record for evals.jsonl, and this process's answers."""
    started = time.perf_counter()
    mine = questions[group.ranks.rank :: group.ranks.world_size]
    answers = answer(
        model, tokenizer, mine, device=device, precision=precision, keep_going=keep_going
    )
    given = answers or []
    tally = torch.tensor(
        [
            sum(a.pred == a.label for a in given),
            sum(a.pred_norm == a.label for a in given),
            answers is None,
        ],
        dtype=torch.float64,
        device=device,
    )
    right, right_norm, interrupted = group.sum(tally).tolist()
    if interrupted:
        return None
    n = len(questions)
    record = {
        "task": "hellaswag",
        "protocol": "completion",
        "questions": n,
        "acc": right / n,
        "acc_stderr": standard_error(right / n, n),
        "acc_norm": right_norm / n,
        "acc_norm_stderr": standard_error(right_norm / n, n),
        "seconds": time.perf_counter() - started,
    }
    return record, given


def standard_error(p: float, n: int) -> float:
    """Standard error of a share p of n, with the sample's n - 1, as lm-eval reports it."""
    return math.sqrt(p * (1 - p) / max(1, n - 1))


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
