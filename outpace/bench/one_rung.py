"""One setting of the ladder, measured in its own process: the losses of its first steps, then the
time of a step in a few windows, memory, and the kernels that ran.

    python -m outpace.bench.one_rung JOB.json      (started by `ladder.py`)
"""

import gc
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from outpace.bench.result import spread
from outpace.config.load import load
from outpace.core.errors import DataError, OutOfMemory, UsageError
from outpace.core.files import replace_json
from outpace.ops.fastest import synchronise
from outpace.optim.schedules import multiplier as lr_multiplier
from outpace.runtime.distributed import Group, Ranks
from outpace.runtime.driver import State, state_amid
from outpace.runtime.hardware import memory_in_use
from outpace.tokenizer import get_tokenizer
from outpace.train.assemble import build_trainable, make_loader
from outpace.train.run import plan_run
from outpace.train.step import TooLarge, train_step

MOST_STEPS = 1 << 40
KERNELS = 15


@dataclass(frozen=True)
class RungJob:
    """The measurement that one process makes."""

    argv: list[str]
    """Flags of `outpace train`."""
    drift_argv: list[str] | None
    """Flags for the steps whose losses are kept; None: keep no losses and no kernels."""
    drift_steps: int
    warmup_s: float
    window_s: float
    windows: int
    output: str


class Stepper:
    """A planned training over the real loader, step by step."""

    def __init__(self, argv: list[str]) -> None:
        ranks = Ranks()
        self.config, set_by = load(argv, "outpace bench ladder")
        self.plan, _, mixture, self.device = plan_run(self.config, set_by, ranks)
        self.trainable = build_trainable(
            self.config,
            self.plan,
            group=Group(ranks, self.device),
            end_of_text=get_tokenizer(mixture.tokenizer).end_of_text,
        )
        loader = make_loader(self.plan, mixture, 0, self.device)
        self.batches = loader.steps(0, MOST_STEPS)
        self.done = 0
        self.losses: list[float] = []
        """Losses of the last call of `run`."""

    def run(self, steps: int) -> list[float]:
        """Run `steps` steps; returns their losses, read at the end so that no step waits for it."""
        losses = []
        for _ in range(steps):
            plan = self.plan
            lr = plan.lr * lr_multiplier(
                self.config.schedule, self.done, plan.max_steps, plan.warmup_steps
            )
            result = train_step(self.trainable, next(self.batches), step=self.done, lr=lr)
            assert result is not None
            losses.append(result.loss)
            self.done += 1
        self.losses = torch.stack(losses).tolist() if losses else []
        return self.losses

    def seconds(self, steps: int) -> float:
        """Seconds that `steps` steps take, waiting for the device before and after."""
        synchronise(self.device)
        begin = time.perf_counter()
        self.run(steps)
        synchronise(self.device)
        return time.perf_counter() - begin

    def close(self) -> None:
        self.batches.close()


def measure(job: RungJob) -> dict[str, Any]:
    """The result; `skipped` with the reason if this machine cannot run the setting."""
    losses: list[float] = []
    try:
        stepper = Stepper(job.drift_argv or job.argv)
        first_step_s = stepper.seconds(1)
        if job.drift_argv is not None:
            losses = [*stepper.losses, *stepper.run(job.drift_steps - 1)]
            if job.drift_argv != job.argv:
                stepper.close()
                del stepper
                gc.collect()
                stepper = Stepper(job.argv)
        result = _timed(job, stepper)
    except TooLarge:
        return {"skipped": "it does not fit in memory"}
    except (UsageError, DataError, OutOfMemory) as error:
        return {"skipped": error.what}
    stepper.close()
    plan = stepper.plan.record()
    return result | {
        "first_step_s": first_step_s,
        "losses": losses,
        "plan": plan["plan"],
        "choices": plan["choices"],
    }


def _timed(job: RungJob, stepper: Stepper) -> dict[str, Any]:
    """Warm up, time the windows, and profile one more step."""
    device = stepper.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    until = time.perf_counter() + job.warmup_s
    if not stepper.done:
        stepper.run(1)
    seconds = stepper.seconds(1)
    while time.perf_counter() < until:
        seconds = stepper.seconds(1)
    steps = math.ceil(job.window_s / seconds)
    step_ms: list[float] = []
    windows = job.windows
    if seconds > job.window_s:  # one long step is a window, and two suffice
        step_ms, windows = [1e3 * seconds], min(1, job.windows - 1)
    states: list[State] = []
    for _ in range(windows):
        with state_amid(device, job.window_s / 2) as found:
            step_ms.append(1e3 * stepper.seconds(steps) / steps)
        states += found
    peak = memory_in_use(device)
    return {
        "step_ms": spread(step_ms),
        "windows_ms": step_ms,
        "steps_in_a_window": steps,
        "gpu": states,
        "peak_memory_bytes": peak,
        "kernels": kernels(stepper) if job.drift_argv else None,
    }


def kernels(stepper: Stepper) -> list[dict[str, Any]]:
    """The KERNELS that take most of one step: kernels on a GPU, PyTorch's operators on a CPU, where
    compiled code counts as the region that calls it. Self times, as shares of the total."""
    on_gpu = stepper.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        stepper.seconds(1)
    spent: dict[str, tuple[float, int]] = {}
    for event in profiler.key_averages():
        on_it = str(event.device_type).endswith("CUDA") and not event.is_user_annotation
        if on_gpu and not on_it:  # named ranges have rows on a GPU, too
            continue
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[event.key[:120]] = (us, event.count)
    total = sum(us for us, _ in spent.values()) or 1.0
    top = sorted(spent.items(), key=lambda item: -item[1][0])[:KERNELS]
    return [{"name": name, "share": us / total, "calls": n} for name, (us, n) in top]


if __name__ == "__main__":
    asked = RungJob(**json.loads(Path(sys.argv[1]).read_text()))
    replace_json(Path(asked.output), measure(asked))
