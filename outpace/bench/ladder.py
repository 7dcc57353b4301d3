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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from outpace.bench.one_rung import RungJob
from outpace.bench.result import RESULTS, check_writable, source_digest, write_result
from outpace.bench.rungs import (
    BY_DEVICE,
    EQUAL,
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
from outpace.train.plan import Capabilities, DatasetFacts
from outpace.train.planner import make_plan

WINDOWS = 3
DRIFT_LIMIT = {"fp32": 1e-3, "half": 2e-2, "fp8": 1e-1}
"""Most nats by which a loss may differ from the lowest rung's after the compared steps: rounding,
amplified by that many updates. A wrong kernel, mask or scale exceeds this by far."""


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


@dataclass
class Point:
    """A setting and its measurement."""

    setting: Setting
    result: dict[str, Any] = field(default_factory=dict)


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
    points = {s.name: Point(s) for s in (*settings, equal, *lowest, *top, *without)}
    keys = _keys(c, machine, ladder, points)
    if c.resume:
        _take_over(points, keys, output or RESULTS / f"{name}.json")
    # The two numbers first, then the rungs in their order.
    order = [settings[0], equal, *lowest, *top, *settings[1:], *without]
    path = None
    say(f"{len(order)} points of {WINDOWS} windows, at most {c.minutes:g} minutes")
    with scratch("outpace-ladder-") as work:
        for i, setting in enumerate(order):
            point = points[setting.name]
            _measure(c, ladder, points, point, work / str(i), deadline, len(order) - i)
            _tell(c, points, point)
            # After each point, so that an interrupted run keeps its results.
            body = _body(c, points, settings, lowest, top, without, skipped)
            body["points"] = {keys[n]: p.result for n, p in points.items() if "step_ms" in p.result}
            path = write_result(name, c.device.type, body, output)
        assert path is not None
        _tell_numbers(body["numbers"])
        _raise_faults(points, body, work, path)
    return path


def _keys(c: Climb, machine: Machine, ladder: Ladder, points: dict[str, Point]) -> dict[str, str]:
    """A key that identifies each point's measurement: code, PyTorch, machine, data and flags. The
    data's fingerprint counts, not its path."""
    data, torch_here = c.dataset.fingerprint, torch.__version__
    place = [source_digest(), torch_here, machine.device_name, data, c.drift_steps]
    keys = {}
    for name, point in points.items():
        drift = argv(drift_flags(point.setting, ladder)) if point.setting.drift else []
        flags = c.flags | point.setting.flags | {"dataset": ""}
        keys[name] = json.dumps([*place, argv(flags), drift])
    return keys


def _take_over(points: dict[str, Point], keys: dict[str, str], path: Path) -> None:
    """Take the points of an earlier call from its result file."""
    try:
        earlier = json.loads(path.read_text())["points"]
    except (OSError, ValueError, LookupError, TypeError):
        earlier = {}
    for name, point in points.items():
        point.result = dict(earlier.get(keys[name], {}))
    found = sum(bool(point.result) for point in points.values())
    say(f"{found} points are in {path} already")


def _measure(
    c: Climb,
    ladder: Ladder,
    points: dict[str, Point],
    point: Point,
    folder: Path,
    deadline: float,
    left: int,
) -> None:
    """Run a point in its own process, unless the same flags were measured already or time is up."""
    same = [p for p in points.values() if p.setting.flags == point.setting.flags]
    if known := next((p.result for p in same if p.result), None):
        point.result = known
        return
    seconds = deadline - time.monotonic()
    if seconds < 1:
        point.result = {"no_time": True}
        return
    compares = c.drift_steps > 0 and any(p.setting.drift for p in same)
    # At most half of an equal share of the time is for the windows.
    window_s = min(c.window_s, seconds / left / 2 / WINDOWS)
    job = RungJob(
        argv=argv(c.flags | point.setting.flags),
        drift_argv=argv(c.flags | drift_flags(point.setting, ladder)) if compares else None,
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
    points: dict[str, Point],
    settings: list[Setting],
    lowest: list[Setting],
    top: list[Setting],
    without: list[Setting],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """The result file."""
    rows = {name: row(c, points, p) for name, p in points.items() if p.result}

    def of(chosen: list[Setting]) -> list[dict[str, Any]]:
        return [rows[s.name] for s in chosen if s.name in rows]

    equal = rows.get(EQUAL)
    first = rows.get(settings[0].name)
    return {
        "shape": asdict(c.shape),
        "parameters": parameters(c.shape),
        "threads": torch.get_num_threads(),
        "drift_steps": c.drift_steps,
        "window_s": c.window_s,
        "minutes": c.minutes,
        "dataset": {"name": c.dataset.name, "fingerprint": c.dataset.fingerprint},
        "numbers": {
            "equal_tokens": _ratio([equal] if equal else [], [first] if first else []),
            "best_micro_batch": _ratio(of(top), of(lowest)),
        },
        "rungs": of(settings),
        "skipped": skipped,
        "equal_tokens": equal,
        "best_micro_batch": {"lowest": of(lowest), "top": of(top)},
        "leave_one_out": of(without),
    }


def row(c: Climb, points: dict[str, Point], point: Point) -> dict[str, Any]:
    """A point as a row of the result: its measurement, and the rates that follow from it."""
    setting, result = point.setting, dict(point.result)
    made: dict[str, Any] = {
        "name": setting.name,
        "sentence": setting.sentence,
        "rungs": setting.rungs,
        "flags": " ".join(argv(setting.flags)),
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
        lowest = next(iter(points.values())).result.get("losses") or [None]
        made["loss"], made["drift"] = losses[-1], _difference(losses[-1], lowest[-1])
        made["drift_limit"] = drift_limit(plan)
    return made


def drift_limit(plan: dict[str, Any]) -> float:
    """DRIFT_LIMIT for the coarsest type in which a plan multiplies."""
    if plan["fp8_head"]:
        return DRIFT_LIMIT["fp8"]
    coarse = plan["mixed_precision"] != "no" or plan["tf32"]
    return DRIFT_LIMIT["half" if coarse else "fp32"]


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


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


def _tell(c: Climb, points: dict[str, Point], point: Point) -> None:
    r = row(c, points, point)
    if "step_ms" not in r:
        why = r.get("skipped") or r.get("failed") or "no time left (--minutes)"
        warn(f"{r['name']} is left out: {why}")
        return
    first = row(c, points, next(iter(points.values())))
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


def _raise_faults(points: dict[str, Point], body: dict[str, Any], work: Path, path: Path) -> None:
    failed = [f"{n}: {p.result['failed']}" for n, p in points.items() if "failed" in p.result]
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
