"""Optimisers by what they reach: `outpace train` with each, at several learning rates, from the
same weights over the same batches. Speed alone does not tell whether a dearer update is worth it.
"""

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
from outpace.core.errors import OutpaceError
from outpace.core.files import read_json_lines, replace_file
from outpace.core.log import say, warn
from outpace.core.runfolder import RunFolder
from outpace.train.plan import Plan


@dataclass(frozen=True)
class Race:
    """What is compared, and where its runs are."""

    config: RunConfig
    set_by: SetBy
    plan: Plan
    optimizers: Sequence[str]
    learning_rates: Sequence[float]
    work: Path


def race(r: Race, output: Path | None) -> Path:
    """Train, tell, and write the result after each run, so that one cut short leaves what it has.
    The same call goes on where it was. OutpaceError when no run of an optimiser came to its end."""
    check_writable(name := f"optimizers-{r.plan.device}", output)
    recipe = r.work / "recipe.toml"
    r.work.mkdir(parents=True, exist_ok=True)
    replace_file(recipe, to_toml(r.config, r.set_by))
    rows: list[dict[str, Any]] = []
    for optimizer in r.optimizers:
        for lr in r.learning_rates:
            rows.append(_train(r, recipe, optimizer, lr))
            best = {o: b for o in r.optimizers if (b := best_of(rows, o))}
            first = best.get(r.optimizers[0])
            body = {
                "settings": r.plan.record()["plan"],
                "rows": rows,
                "best": {o: b["lr"] for o, b in best.items()},
                "sooner": {o: sooner(b, first) for o, b in best.items() if first and b != first},
            }
            path = write_result(name, r.plan.device, body, output)
    if without := [o for o in r.optimizers if o not in best]:
        raise OutpaceError(
            "NO-RUN-ENDED",
            f"no run with --optimizer {without[0]} came to its end",
            kept=f"the runs, in {r.work}",
            do="read their logs; where the loss grew, give lower --learning_rates",
        )
    for optimizer, less in body["sooner"].items():
        say(f"{optimizer}: {in_words(less, r.optimizers[0])}")
    return path


def _train(r: Race, recipe: Path, optimizer: str, lr: float) -> dict[str, Any]:
    """One run to its end, or on from where it was stopped."""
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
    """The run of an optimiser with the least loss at its end."""
    ended = [r for r in rows if r["optimizer"] == optimizer and "loss" in r]
    return min(ended, key=lambda r: r["loss"], default=None)


def sooner(run: dict[str, Any], other: dict[str, Any]) -> dict[str, float] | None:
    """How many times fewer tokens, and how many times less training time, `run` took to the loss
    that `other` has at its end; None where it never got there. Between evaluations a straight line.
    On its way its learning rate was still high, so a shorter run would get there sooner yet."""
    tokens, losses = zip(*run["curve"], strict=True)
    below = next((i for i, loss in enumerate(losses) if loss <= other["loss"]), None)
    if below is None:
        return None
    ends = slice(max(0, below - 1), below + 1)
    there = float(np.interp(-other["loss"], -np.array(losses[ends]), tokens[ends]))
    fewer = other["tokens"] / there
    rate = run["tokens_per_second"]["median"] / other["tokens_per_second"]["median"]
    return {"tokens": fewer, "time": fewer * rate}


def in_words(less: dict[str, float] | None, other: str) -> str:
    """What `sooner` says."""
    if less is None:
        return f"never the last loss of {other}"
    tokens, time = less["tokens"], less["time"]
    return f"the last loss of {other}, {tokens:.2f} times sooner in tokens, {time:.2f} in time"
