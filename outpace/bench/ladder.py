"""The ladder: how much each setting speeds up training on this machine, from plain PyTorch to the
fastest training of the same model. Each point runs the real `train_step` in its own process
(`one_rung.py`); this module decides what is measured, in which order and for how long.

Two numbers come first, so that they exist if time runs out: the top of the ladder against its
lowest rung at equal tokens per step, and both at their best micro-batch at many tokens per step.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.bench.one_rung import RungJob
from outpace.bench.result import RESULTS, check_writable, write_result
from outpace.bench.rungs import (
    BY_DEVICE,
    Flags,
    Ladder,
    Rung,
    Setting,
    WhyNot,
    argv,
    best_micro_batch,
    cumulative,
    drift_flags,
    equal_tokens,
    fitting,
    leave_one_out,
    pick,
)
from outpace.bench.turns import last_line, log_end, no_survivors, scratch
from outpace.config.load import load
from outpace.config.presets import GPT2Shape
from outpace.core.children import end, start
from outpace.core.errors import NumericsError, OutOfMemory, OutpaceError, UsageError
from outpace.core.log import say, warn
from outpace.core.units import gib
from outpace.data.shards import Dataset
from outpace.model.cost import parameters
from outpace.runtime.hardware import Machine
from outpace.train.environment import source_digest
from outpace.train.plan import Capabilities, DatasetFacts
from outpace.train.planner import make_plan

WINDOWS = 3
DRIFT_LIMIT = {"fp32": 1e-3, "half": 2e-2, "fp8": 1e-1}
"""Most nats by which a loss may differ from the lowest rung's after the compared steps: rounding,
amplified by that many updates. A wrong loss or update exceeds this; wrong attention hardly shows
so early in a training (docs/lab-log.md), and is found by `tests/conformance`."""


@dataclass(frozen=True)
class Climb:
    """The points to measure, and for how long."""

    shape: GPT2Shape
    dataset: Dataset
    device: torch.device
    rungs: tuple[str, ...] = ()
    """Empty: all."""
    without: tuple[str, ...] = ()
    leave_one_out: bool = False
    drift_steps: int = 50
    warmup_s: float = 2.0
    window_s: float = 5.0
    minutes: float = 14.0
    best_micro_batch: bool = True
    resume: bool = False

    @property
    def flags(self) -> Flags:
        """The flags that all points share."""
        s = self.shape
        return {
            "dataset": str(self.dataset.folder),
            "device": self.device.type,
            "n_layer": s.n_layer,
            "n_head": s.n_head,
            "n_embd": s.n_embd,
            "context": s.context,
            "lr": 6e-4,
            "schedule": "constant",
            "warmup_steps": 10,
            "max_steps": 1_000_000,
            "guard": False,
        }


def why_not(climb: Climb, machine: Machine, can: Capabilities) -> WhyNot:
    """A function (rung, flags) -> the reason why the plan refuses it on this machine or, unless the
    rung was named, why it is not worth measuring here; None if it can be measured."""
    s = climb.shape
    facts = DatasetFacts("ladder", s.vocab_size, 10**9, 0)

    def ask(rung: Rung, flags: Flags) -> str | None:
        if rung.name not in climb.rungs and (slow := rung.fast(machine)):
            return slow
        config, set_by = load(argv(climb.flags | flags), "outpace bench ladder")
        try:
            make_plan(config, set_by, machine, facts, 1, can)
        except (UsageError, OutOfMemory) as error:
            return error.what
        return None

    return ask


def climb(c: Climb, machine: Machine, can: Capabilities, output: Path | None) -> Path:
    """Measure, print, write the result. Then raises OutpaceError RUNG-FAILED if a process failed,
    or NumericsError DRIFT if a rung's loss differs too much from the lowest rung's."""
    ladder, name = BY_DEVICE[c.device.type], f"ladder-{c.device.type}"
    chosen = pick(ladder, c.rungs, c.without)
    check_writable(name, output)
    refusal = why_not(c, machine, can)
    ladder = fitting(ladder, refusal)
    settings, carried, skipped = cumulative(chosen, ladder, refusal)
    deadline = time.monotonic() + 60 * c.minutes  # excludes what the planner measures once
    for rung, reason in skipped.items():
        say(f"{rung} is left out: {reason}")
    lowest, top = best_micro_batch(carried, ladder) if c.best_micro_batch else ([], [])
    without = leave_one_out(carried, ladder) if c.leave_one_out else []
    equal = equal_tokens(carried, ladder)
    # The two numbers first, then the rungs in their order.
    points = [settings[0], equal, *lowest, *top, *settings[1:], *without]
    keys = _keys(c, machine, ladder, points)
    if c.resume:
        _take_over(points, keys, output or RESULTS / f"{name}.json")
    path = None
    say(f"{len(points)} points of {WINDOWS} windows, at most {c.minutes:g} minutes")
    with scratch("outpace-ladder-") as work:
        for i, point in enumerate(points):
            _measure(c, ladder, points, point, work / str(i), deadline, len(points) - i)
            _tell(points[0], point)
            # After each point, so that an interrupted run keeps its results.
            body = _body(c, settings, equal, lowest, top, without) | {"skipped": skipped}
            body["points"] = {keys[p.name]: p.result for p in points if "step_ms" in p.result}
            path = write_result(name, c.device.type, body, output)
        assert path is not None
        _tell_numbers(body["numbers"])
        _raise_faults(points, body, work, path)
    return path


def _keys(c: Climb, machine: Machine, ladder: Ladder, points: list[Setting]) -> dict[str, str]:
    """A key that identifies each point's measurement: code, PyTorch, machine, data and flags. The
    data's fingerprint counts, not its path."""
    data, torch_here = c.dataset.fingerprint, torch.__version__
    place = [source_digest(), torch_here, machine.device_name, data, c.drift_steps]
    keys = {}
    for point in points:
        drift = argv(drift_flags(point, ladder)) if point.drift else []
        flags = c.flags | point.flags | {"dataset": ""}
        keys[point.name] = json.dumps([*place, argv(flags), drift])
    return keys


def _take_over(points: list[Setting], keys: dict[str, str], path: Path) -> None:
    """Take the points of an earlier call from its result file."""
    try:
        earlier = json.loads(path.read_text())["points"]
    except (OSError, ValueError, LookupError, TypeError):
        earlier = {}
    for point in points:
        point.result = dict(earlier.get(keys[point.name], {}))
    found = sum(bool(point.result) for point in points)
    say(f"{found} points are in {path} already")


def _measure(
    c: Climb,
    ladder: Ladder,
    points: list[Setting],
    point: Setting,
    folder: Path,
    deadline: float,
    left: int,
) -> None:
    """Run a point in its own process, unless the same flags were measured already or time is up."""
    same = [p for p in points if p.flags == point.flags]
    if known := next((p.result for p in same if p.result), None):
        point.result = known
        return
    seconds = deadline - time.monotonic()
    if seconds < 1:
        point.result = {"no_time": True}
        return
    compares = c.drift_steps > 0 and any(p.drift for p in same)
    # At most half of an equal share of the time is for the windows.
    window_s = min(c.window_s, seconds / left / 2 / WINDOWS)
    job = RungJob(
        argv=argv(c.flags | point.flags),
        drift_argv=argv(c.flags | drift_flags(point, ladder)) if compares else None,
        drift_steps=c.drift_steps,
        warmup_s=min(c.warmup_s, window_s),
        window_s=window_s,
        windows=WINDOWS,
        output=str(folder / "result.json"),
    )
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    began = time.monotonic()
    point.result = _in_a_process(folder, seconds)
    point.result["seconds"] = time.monotonic() - began


def _in_a_process(folder: Path, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-u", "-m", "outpace.bench.one_rung", str(folder / "job.json")]
    with no_survivors() as ending:
        process = start(command, folder / "log")
        ending.callback(end, process)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return {"no_time": True}
    if code:
        log = folder / "log"
        return {"failed": f"it ended with {code}: {last_line(log)}", "log": log_end(log)}
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def _body(
    c: Climb,
    settings: list[Setting],
    equal: Setting,
    lowest: list[Setting],
    top: list[Setting],
    without: list[Setting],
) -> dict[str, Any]:
    """The result file, of the points measured so far."""
    first = settings[0]

    def rows(chosen: list[Setting]) -> list[dict[str, Any]]:
        return [row(first, point) for point in chosen if point.result]

    return {
        "shape": asdict(c.shape),
        "parameters": parameters(c.shape),
        "threads": torch.get_num_threads(),
        "drift_steps": c.drift_steps,
        "window_s": c.window_s,
        "minutes": c.minutes,
        "dataset": {"name": c.dataset.name, "fingerprint": c.dataset.fingerprint},
        "numbers": {
            "equal_tokens": _ratio(rows([equal]), rows([first])),
            "best_micro_batch": _ratio(rows(top), rows(lowest)),
        },
        "rungs": rows(settings),
        "equal_tokens": next(iter(rows([equal])), None),
        "best_micro_batch": {"lowest": rows(lowest), "top": rows(top)},
        "leave_one_out": rows(without),
    }


def row(first: Setting, point: Setting) -> dict[str, Any]:
    """A point as a row of the result: its measurement, and what follows from it, such as the
    difference of its loss from that of the lowest rung, `first`."""
    result = dict(point.result)
    made: dict[str, Any] = {
        "name": point.name,
        "sentence": point.sentence,
        "rungs": point.rungs,
        "flags": " ".join(argv(point.flags)),
    }
    if "step_ms" not in result:
        return made | result
    plan = result.pop("plan")
    rate = 1e3 * plan["tokens_per_step"] / result["step_ms"]["median"]
    made |= {
        "tokens_per_step": plan["tokens_per_step"],
        "micro_batch_size": plan["micro_batch_size"],
        "tokens_per_second": rate,
        "flops_per_token": plan["flops_per_token"],
        "attention": f"{plan['attention_backend']} ({plan['attention_kernel']})",
        "cross_entropy": plan["cross_entropy"],
        **result,
    }
    losses = result["losses"]
    if losses:
        lowest = (first.result.get("losses") or [None])[-1]
        finite = losses[-1] is not None and lowest is not None
        made["loss"], made["drift"] = losses[-1], losses[-1] - lowest if finite else None
        made["drift_limit"] = drift_limit(plan)
    return made


def drift_limit(plan: dict[str, Any]) -> float:
    """DRIFT_LIMIT for the coarsest type in which a plan multiplies."""
    if plan["fp8_head"]:
        return DRIFT_LIMIT["fp8"]
    coarse = plan["mixed_precision"] != "no" or plan["tf32"]
    return DRIFT_LIMIT["half" if coarse else "fp32"]


def _ratio(top: list[dict[str, Any]], lowest: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest of each side, and the ratio of their speeds."""
    rates = [[r for r in rows if "tokens_per_second" in r] for rows in (top, lowest)]
    if not all(rates):
        return None
    ours, naive = (max(rows, key=lambda r: r["tokens_per_second"]) for rows in rates)
    return {
        "ratio": ours["tokens_per_second"] / naive["tokens_per_second"],
        "tokens_per_step": [ours["tokens_per_step"], naive["tokens_per_step"]],
        "tokens_per_second": [ours["tokens_per_second"], naive["tokens_per_second"]],
        "micro_batch_size": [ours["micro_batch_size"], naive["micro_batch_size"]],
    }


def _tell(lowest: Setting, point: Setting) -> None:
    first, r = row(lowest, lowest), row(lowest, point)
    if "step_ms" not in r:
        why = r.get("skipped") or r.get("failed") or "no time left (--minutes)"
        warn(f"{r['name']} is left out: {why}")
        return
    times = ""
    if "tokens_per_second" in first:
        times = f"{r['tokens_per_second'] / first['tokens_per_second']:>7.2f}x"
    drift = "" if r.get("drift") is None else f"  loss {r['loss']:.4f} ({r['drift']:+.1e})"
    ms = r["step_ms"]
    say(
        f"  {r['name']:<34}{r['tokens_per_second']:>11,.0f} tokens/s{times}  step "
        f"{ms['median']:,.0f} ms ({ms['p20']:,.0f} to {ms['p80']:,.0f})  "
        f"{gib(r['peak_memory_bytes'])}{drift}"
    )


def _tell_numbers(numbers: dict[str, Any]) -> None:
    for name, words in (
        ("equal_tokens", "at equal tokens per step"),
        ("best_micro_batch", "each at its best micro-batch"),
    ):
        if n := numbers[name]:
            tokens, sizes = n["tokens_per_step"], n["micro_batch_size"]
            say(
                f"{n['ratio']:.2f} times the lowest rung {words} ({tokens[0]:,} tokens per step, "
                f"micro-batches of {sizes[0]} and {sizes[1]})"
            )


def _raise_faults(points: list[Setting], body: dict[str, Any], work: Path, path: Path) -> None:
    failed = [f"{p.name}: {p.result['failed']}" for p in points if "failed" in p.result]
    if failed:
        raise OutpaceError(
            "RUNG-FAILED", "; ".join(failed), kept=f"the measurements, in {path}",
            do=f"read the logs in {work}",
        )  # fmt: skip
    if "loss" not in body["rungs"][0]:
        return  # no loss to compare with
    rows = [r for r in (*body["rungs"], body["equal_tokens"] or {}) if "drift_limit" in r]
    wrong = [
        f"{r['name']} ({'not finite' if r['drift'] is None else format(r['drift'], '+.2g')})"
        for r in rows
        if r["drift"] is None or not abs(r["drift"]) <= r["drift_limit"]
    ]
    if wrong:
        raise NumericsError(
            "DRIFT",
            f"the loss differs from the lowest rung's on the same batches: {', '.join(wrong)}",
            kept=f"the measurement, in {path}",
            do="do not train with these settings here",
        )
