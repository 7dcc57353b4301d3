"""Optimisers compared by the loss they reach: `outpace train` with each, at several learning rates,
from the same weights over the same batches. Speed alone does not tell whether a more expensive
update is worth it.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outpace.bench.result import check_writable, spread, write_result
from outpace.bench.rungs import argv
from outpace.bench.turns import last_line, no_survivors
from outpace.config.load import SetBy, to_toml
from outpace.config.schema import RunConfig
from outpace.core.children import end, start
from outpace.core.errors import BUG, STOPPED_RESUMABLE, OutpaceError, Stopped
from outpace.core.files import read_json_lines, replace_file
from outpace.core.log import say, warn
from outpace.core.runfolder import RunFolder
from outpace.train.plan import Plan

LEAST_EVALS = 10
"""Evaluations a run from which `sooner` is right to about 1%. With 2 of the 20 points of
benchmarks/results/optimizers-cpu.json it says 2.00 instead of 2.31, with 10 of them 2.30."""


@dataclass(frozen=True)
class Race:
    """The optimisers to compare, and the folder of their runs."""

    config: RunConfig
    set_by: SetBy
    plan: Plan
    dataset: dict[str, str]
    """Name and fingerprint of the dataset."""
    optimizers: Sequence[str]
    learning_rates: Sequence[float]
    work: Path


def race(r: Race, output: Path | None) -> Path:
    """Train, print, and write the result after each run, so that an interrupted race keeps its
    results; the same call continues it. OutpaceError if no run of an optimiser was completed."""
    check_writable(name := f"optimizers-{r.plan.device}", output)
    every, steps = r.plan.eval_every_steps, r.plan.max_steps
    if steps < LEAST_EVALS * (every or steps):
        warn(
            f"with {steps // every if every else 1} evaluations a run, the tokens to reach a loss "
            f"are a guess: set --eval_every_steps {math.ceil(steps / 20)}"
        )
    recipe = r.work / "recipe.toml"
    r.work.mkdir(parents=True, exist_ok=True)
    replace_file(recipe, to_toml(r.config, r.set_by))
    rows: list[dict[str, Any]] = []
    for optimizer in r.optimizers:
        for lr in r.learning_rates:
            rows.append(_train(r, recipe, optimizer, lr))
            best = {o: b for o in r.optimizers if (b := best_of(rows, o))}
            first = r.optimizers[0]
            body = {
                "settings": r.plan.record()["plan"],
                "dataset": r.dataset,
                "rows": rows,
                "best": {o: b["lr"] for o, b in best.items()},
                "sooner": {o: sooner(rows, o, first) for o in best if first in best and o != first},
            }
            path = write_result(name, r.plan.device, body, output)
            if rows[-1]["exit_code"] == STOPPED_RESUMABLE:
                raise Stopped(
                    "STOPPED",
                    f"{optimizer} at {lr:g} stopped before its end",
                    kept=f"the runs, in {r.work}",
                    do="run the same command again to continue",
                )
    if without := [o for o in r.optimizers if o not in best]:
        fault = OutpaceError(
            "NO-RUN-ENDED",
            f"no run with --optimizer {without[0]} was completed",
            kept=f"the runs, in {r.work}",
            do="read their logs; if the loss grew, give lower --learning_rates",
        )
        codes = [row["exit_code"] for row in rows if row["optimizer"] == without[0]]
        fault.exit_code = max(BUG, *codes)
        raise fault
    for optimizer, row in best.items():
        if len(r.learning_rates) > 1 and row["lr"] in (
            min(r.learning_rates),
            max(r.learning_rates),
        ):
            warn(f"{optimizer} is best at {row['lr']:g}, the end of the rates tried: try more")
    for optimizer, less in body["sooner"].items():
        say(f"{optimizer} {in_words(less, r.optimizers[0])}")
    return path


def _train(r: Race, recipe: Path, optimizer: str, lr: float) -> dict[str, Any]:
    """Train one run, or resume it; returns its row."""
    folder = RunFolder(r.work / f"{optimizer}-{lr:g}")
    log = r.work / f"{optimizer}-{lr:g}.log"
    flags = {"recipe": recipe, "optimizer": optimizer, "lr": lr, "run_dir": folder.root}
    command = [sys.executable, "-m", "outpace", "train", *argv(flags)]
    with no_survivors() as ending:
        process = start(command, log)
        ending.callback(end, process)
        code = process.wait()
    row: dict[str, Any] = {"optimizer": optimizer, "lr": lr, "exit_code": code}
    evals = read_json_lines(folder.evals)
    curve = [(e["tokens"], e["loss"]) for e in evals if e["task"] == "validation"]
    if code == STOPPED_RESUMABLE:
        return row
    if code or not curve:
        warn(f"{optimizer} at {lr:g} is left out: {last_line(log)}")
        return row
    rates = [m["tokens_per_second"] for m in read_json_lines(folder.metrics)]
    row |= {
        "loss": curve[-1][1],
        "tokens": curve[-1][0],
        "tokens_per_second": spread([rate for rate in rates if rate]),
        "curve": curve,
    }
    say(f"{optimizer} at {lr:g}: validation loss {row['loss']:.4f}")
    return row


def best_of(rows: Sequence[dict[str, Any]], optimizer: str) -> dict[str, Any] | None:
    """The run of an optimiser with the lowest final loss."""
    ended = [r for r in rows if r["optimizer"] == optimizer and "loss" in r]
    return min(ended, key=lambda r: r["loss"], default=None)


def sooner(rows: Sequence[dict[str, Any]], optimizer: str, other: str) -> dict[str, float] | None:
    """How many times fewer tokens, and how many times less training time, the best run of
    `optimizer` needs to reach the final loss of `other`'s best run; None if it never reaches it.

    The loss is interpolated linearly between evaluations. At that point the learning rate was still
    high, so a run that short would reach a lower loss. Times use the fastest run of each: the
    learning rate does not affect speed, and other work on the machine only slows a run."""
    run, goal = best_of(rows, optimizer), best_of(rows, other)
    assert run is not None and goal is not None
    tokens, losses = zip(*run["curve"], strict=True)
    below = next((i for i, loss in enumerate(losses) if loss <= goal["loss"]), None)
    if below is None:
        return None
    ends = slice(max(0, below - 1), below + 1)
    there = float(np.interp(-goal["loss"], -np.array(losses[ends]), tokens[ends]))
    fewer = goal["tokens"] / there
    return {"tokens": fewer, "time": fewer * _speed(rows, optimizer) / _speed(rows, other)}


def _speed(rows: Sequence[dict[str, Any]], optimizer: str) -> float:
    ended = [r for r in rows if r["optimizer"] == optimizer and "loss" in r]
    return max(float(r["tokens_per_second"]["median"]) for r in ended)


def in_words(less: dict[str, float] | None, other: str) -> str:
    """The result of `sooner`, as the end of a sentence."""
    if less is None:
        return f"never reaches {other}'s final loss"
    tokens, time = less["tokens"], less["time"]
    reached = f"reaches {other}'s final loss"
    return f"{reached} with {tokens:.2f} times fewer tokens, in {time:.2f} times less time"
