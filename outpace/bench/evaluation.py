"""Speed of scoring HellaSwag: outpace, karpathy/build-nanogpt's hellaswag.py and lm-eval take turns
with the same model and questions. Their answers are compared, too.
"""

import contextlib
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from outpace.bench.peers import script_of, tiktoken_cache
from outpace.bench.result import check_writable, spread, write_result
from outpace.core.errors import UsageError
from outpace.core.log import note
from outpace.evals import task
from outpace.evals.packing import pack, trees
from outpace.evals.scoring import BATCH_TOKENS
from outpace.evals.tasks import hellaswag
from outpace.interop import huggingface
from outpace.model.gpt2 import GPT2
from outpace.model.matrices import for_inference
from outpace.runtime.distributed import Group, Ranks
from outpace.tokenizer import get_tokenizer
from outpace.train.environment import commit_of

CPU = torch.device("cpu")
SCRIPT = "hellaswag.py"
LM_EVAL_BATCH = 16

Row = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """Time and answers of one turn of a contestant."""

    seconds: float
    cpu_seconds: float
    """CPU time of this process, all threads together; other programs do not count."""
    right: list[bool]
    """Whether each question was answered correctly, by acc_norm."""


Score = Callable[[list[Row]], Turn]


@dataclass
class Contestant:
    """One way to score, and its turns so far."""

    protocol: str
    score: Score
    turns: list[Turn] = field(default_factory=list)

    @property
    def right(self) -> list[bool]:
        return [x for turn in self.turns for x in turn.right]

    def total(self, clock: str) -> float:
        return float(sum(getattr(turn, clock) for turn in self.turns))


def compare(
    model: GPT2,
    name: str,
    path: Path,
    *,
    questions: int,
    turns: int,
    build_nanogpt: Path | None,
    lm_eval: bool,
    output: Path | None,
) -> Path:
    """Race them over `questions` of the file at `path`, spread evenly and split into `turns`; the
    result so far is written after each turn."""
    check_writable("evaluate-cpu", output)
    official = [json.loads(x) for x in path.read_text(encoding="utf-8").split("\n") if x.strip()]
    rows = task.subset(official, questions)
    watch = _Watch()
    fast = for_inference(model)  # part of loading, as in `outpace evaluate`: not timed
    layout_seconds = watch.read()[0]
    head = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "build_nanogpt_commit": commit_of(build_nanogpt) if build_nanogpt else None,
        "lm_eval_batch_size": LM_EVAL_BATCH if lm_eval else None,
        "layout_seconds": layout_seconds,
        "whole_split": _whole_split(hellaswag.load(path)),
    }
    with tempfile.TemporaryDirectory() as temporary:
        racers = _contestants(model, fast, Path(temporary), build_nanogpt, lm_eval)
        for turn in range(turns):
            chunk = rows[turn::turns]
            order = list(racers)[turn % len(racers) :] + list(racers)[: turn % len(racers)]
            for who in order:
                racers[who].turns.append(racers[who].score(chunk))
            told = ", ".join(f"{who} {r.turns[-1].seconds:.1f} s" for who, r in racers.items())
            note(f"turn {turn + 1} of {turns}, {len(chunk)} questions: {told}")
            body = {
                "questions": sum(len(rows[t::turns]) for t in range(turn + 1)),
                "turns": turn + 1,
                "results": {who: _summary(r) for who, r in racers.items()},
                "against": _against(racers),
            }
            written = write_result("evaluate-cpu", "cpu", head | body, output)
    return written


def _contestants(
    model: GPT2, fast: GPT2, work: Path, build_nanogpt: Path | None, lm_eval: bool
) -> dict[str, Contestant]:
    theirs = huggingface.transformers_model(dict(model.state_dict()), model.shape)
    racers = {"outpace, completion": Contestant("completion", _ours(fast, "completion"))}
    if build_nanogpt is not None:
        theirs.save_pretrained(work / "model")
        racers["build-nanogpt"] = Contestant("completion", _build_nanogpt(build_nanogpt, work))
    if lm_eval:
        racers["outpace, harness"] = Contestant("harness", _ours(fast, "harness"))
        racers["lm-eval"] = Contestant("harness", _lm_eval(theirs, model.shape.context, work))
    for racer in racers.values():  # warm up; the result does not count
        racer.score([_WARM_UP])
    return racers


_WARM_UP = {
    "ind": 0, "activity_label": "Waiting", "ctx_a": "A man waits.", "ctx_b": "he",
    "ctx": "A man waits. he", "label": 0, "split_type": "indomain", "source_id": "activitynet~0",
    "split": "val", "endings": ["waits on.", "leaves.", "sits down again.", "sings."],
}  # fmt: skip


class _Watch:
    """A stopwatch for wall and CPU time, started when it is made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def _ours(model: GPT2, protocol: str) -> Score:
    """As `outpace evaluate` scores: from rows to answers, tokenizing included."""
    tokenizer, alone = get_tokenizer("gpt2"), Group(Ranks(), CPU)

    def score(rows: list[Row]) -> Turn:
        watch = _Watch()
        questions = hellaswag.parse("\n".join(map(json.dumps, rows)).encode())
        asked = hellaswag.ask(questions, protocol, tokenizer)
        scored = task.evaluate(model, asked, precision="no", group=alone)
        assert scored is not None
        return Turn(*watch.read(), [e["pred_norm"] == e["label"] for e in scored[1]])

    return score


def _build_nanogpt(checkout: Path, work: Path) -> Score:
    """The script's `evaluate` of the model in `work`, unchanged. Only its questions come from us,
    so the time between two of them is the time of one question, and loading does not count."""
    with patch.dict(os.environ, TIKTOKEN_CACHE_DIR=str(tiktoken_cache(work / "tiktoken"))):
        script = script_of(checkout / SCRIPT)  # loads the tokenizer

    def score(rows: list[Row]) -> Turn:
        took: list[tuple[float, float]] = []

        def examples(split: str) -> Iterator[Row]:
            for row in rows:
                watch = _Watch()
                yield row
                took.append(watch.read())

        script.iterate_examples = examples  # type: ignore[attr-defined]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            script.evaluate(str(work / "model"), "cpu")
        torch.set_float32_matmul_precision("highest")  # the script lowers it
        counts = [int(n) for n in re.findall(r"^\d+ acc_norm: (\d+)/", said.getvalue(), re.M)]
        right = [now > before for before, now in zip([0, *counts], counts, strict=False)]
        return Turn(sum(wall for wall, _ in took), sum(cpu for _, cpu in took), right)

    return score


def check_checkout(folder: Path) -> None:
    """UsageError unless `folder` contains the script."""
    if not (folder / SCRIPT).is_file():
        raise UsageError(
            "NO-PEER",
            f"there is no {folder / SCRIPT}",
            do="name a checkout of karpathy/build-nanogpt",
        )


def _lm_eval(theirs: Any, context: int, work: Path) -> Score:
    """lm-eval's `evaluate`, from rows to metrics; reading the rows is not timed."""
    from outpace.bench import lm_eval_judge as judge

    tokenizer = work / "tokenizer"
    huggingface.write_tokenizer(tokenizer, context)
    lm = judge.model(theirs, tokenizer, LM_EVAL_BATCH)
    turns = iter(range(10**9))

    def score(rows: list[Row]) -> Turn:
        task = judge.local_task("hellaswag", rows, work / f"turn-{next(turns)}")
        watch = _Watch()
        samples = judge.samples(lm, task)
        return Turn(*watch.read(), [bool(s["acc_norm"]) for s in samples])

    return score


def _summary(racer: Contestant) -> dict[str, Any]:
    questions = len(racer.right)
    return {
        "protocol": racer.protocol,
        "seconds": racer.total("seconds"),
        "cpu_seconds": racer.total("cpu_seconds"),
        "questions_per_second": questions / racer.total("seconds"),
        "acc_norm": sum(racer.right) / questions,
        "seconds_of_each_turn": [turn.seconds for turn in racer.turns],
        "cpu_seconds_of_each_turn": [turn.cpu_seconds for turn in racer.turns],
    }


def _against(racers: dict[str, Contestant]) -> dict[str, Any]:
    """Each peer against outpace with the same protocol."""
    out = {}
    for who, peer in racers.items():
        if who.startswith("outpace"):
            continue
        ours = racers[f"outpace, {peer.protocol}"]
        pairs = list(zip(ours.turns, peer.turns, strict=True))
        out[who] = {
            "times_faster": peer.total("seconds") / ours.total("seconds"),
            "times_less_cpu": peer.total("cpu_seconds") / ours.total("cpu_seconds"),
            "times_faster_of_turns": spread([b.seconds / a.seconds for a, b in pairs]),
            "times_less_cpu_of_turns": spread([b.cpu_seconds / a.cpu_seconds for a, b in pairs]),
            "questions_that_differ": sum(
                a != b for a, b in zip(ours.right, peer.right, strict=True)
            ),
        }
    return out


def _whole_split(questions: Sequence[hellaswag.Question]) -> dict[str, Any]:
    """Tokens in the forward passes for all questions, padding included; beside the tokens of four
    whole right-padded rows per question, as build-nanogpt reads them."""
    tokenizer = get_tokenizer("gpt2")
    out: dict[str, Any] = {}
    for protocol in hellaswag.PROTOCOLS:
        requests = hellaswag.ask(questions, protocol, tokenizer).requests
        batches = pack(trees(requests, 1024), BATCH_TOKENS["cuda"])
        rows = [len(r.context) + max(map(len, r.continuations)) for r in requests]
        out[protocol] = {
            "questions": len(questions),
            "forward_tokens": sum(b.tokens for b in batches),
            "forward_tokens_of_four_rows_each": 4 * sum(rows),
        }
    return out
