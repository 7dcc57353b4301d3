"""The story of a run, top to bottom: step, log, validate, sample, save, stop."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from outpace.checkpoint import store
from outpace.checkpoint.state import optimizer_tensors
from outpace.core.errors import NumericsError
from outpace.core.files import append_json_line
from outpace.optim.schedules import from_config as lr_multiplier
from outpace.runtime.hardware import Machine, memory_in_use
from outpace.train.assemble import Session
from outpace.train.display import Display
from outpace.train.evaluate import Evaluation
from outpace.train.step import StepResult, train_step

MOST_SKIPPED = {"fp16": 30, "bf16": 5, "no": 5}
"""Steps in a row whose gradient may be non-finite; fp16 needs some while its scale settles."""


@dataclass
class Progress:
    """Where training stands; all of it is in a checkpoint."""

    step: int = 0
    """Optimiser steps done."""
    elapsed_s: float = 0.0
    """Seconds spent in steps, over all processes' lives; not in evaluation or saving."""


def train(s: Session, progress: Progress, machine: Machine, environment: dict[str, Any]) -> bool:
    """Train to the plan's end. Returns True when it is reached, False when asked to stop before;
    either way the newest step is in a committed checkpoint."""
    plan, saved_at = s.plan, progress.step
    clock = _Clock(progress)
    evaluation = Evaluation(s, progress)
    skipped_in_a_row = torch.zeros((), device=s.trainable.device)
    interrupted = lambda: bool(s.group.largest(int(s.stop.requested)))  # noqa: E731

    def save() -> None:
        nonlocal saved_at
        if progress.step > saved_at:
            commit(s, progress, environment)
            saved_at = progress.step

    with Display(progress.step, plan.max_steps, s.group.ranks.is_main) as display:
        steps = s.loader.steps(progress.step, plan.max_steps)
        for line in evaluation.missed():
            display.line(line)
        stopped = interrupted()
        while progress.step < plan.max_steps and not stopped:
            batches = next(steps)
            lr = plan.lr * lr_multiplier(
                s.config.schedule, progress.step, plan.max_steps, plan.warmup_steps
            )
            result = train_step(
                s.trainable, batches, step=progress.step, lr=lr, interrupted=interrupted
            )
            if result is None:
                break
            progress.step += 1
            step = progress.step
            skipped_in_a_row = (skipped_in_a_row + 1) * result.skipped
            last = step == plan.max_steps

            if last or step == 1 or _due(step, plan.log_every_steps):
                record = measure(s, progress, result, lr, clock, machine)
                _check_numerics(s, step, float(skipped_in_a_row))
                if s.group.ranks.is_main:
                    append_json_line(s.folder.metrics, record)
                display.show(record, eta_s=clock.eta(plan.max_steps - step))
            saves = _due(step, plan.save_every_steps)
            if not last and (saves or evaluation.is_due(step)):
                float(result.grad_norm)  # wait for the GPU, so that its steps count as training
                with clock.paused():
                    if saves:
                        save()
                    for line in evaluation.due(step):
                        display.line(line)
            stopped = interrupted()
        steps.close()
        finished = progress.step == plan.max_steps
        save()
        s.group.largest(0)  # nobody leaves while the first process still writes
        if finished:
            for line in evaluation.final():
                display.line(line)
            finished = evaluation.complete
    return finished


def measure(
    s: Session,
    progress: Progress,
    result: StepResult,
    lr: float,
    clock: "_Clock",
    machine: Machine,
) -> dict[str, Any]:
    """One record of metrics.jsonl. Reads from the device: the loop's only host synchronisation."""
    plan, W = s.plan, s.group.ranks.world_size
    loss = float(s.group.sum(result.loss_sum)) / (result.tokens * W)
    norm = float(result.grad_norm)
    rate = clock.steps_per_second()
    tokens_per_second = rate * plan.tokens_per_step if rate else None
    mfu = None
    if tokens_per_second and machine.peak_flops and plan.mixed_precision != "no":
        mfu = tokens_per_second * plan.flops_per_token / (machine.peak_flops * W)
    return {
        "step": progress.step,
        "tokens": progress.step * plan.tokens_per_step,
        "loss": loss,
        "lr": lr,
        "grad_norm": norm,
        "skipped": bool(result.skipped),
        "loss_scale": s.trainable.scaler.get_scale() if s.trainable.scaler.is_enabled() else None,
        "tokens_per_second": tokens_per_second,
        "mfu": mfu,
        "memory_gib": memory_in_use(s.trainable.device) / 2**30,
        "elapsed_s": progress.elapsed_s,
    }


def commit(s: Session, progress: Progress, environment: dict[str, Any]) -> None:
    """Save a checkpoint by the protocol of `checkpoint.store`; the first process writes."""
    if not s.group.ranks.is_main:
        return
    started = time.perf_counter()
    weights = dict(s.model.named_parameters())
    path = store.save(
        s.folder.checkpoints,
        progress.step,
        {
            store.MODEL: weights,
            store.OPTIMIZER: optimizer_tensors(s.model, s.trainable.optimizer),
        },
        {
            "format": store.FORMAT,
            "step": progress.step,
            "tokens": progress.step * s.plan.tokens_per_step,
            "elapsed_s": progress.elapsed_s,
            "max_steps": s.plan.max_steps,
            "shape": asdict(s.plan.shape),
            "tokenizer": s.tokenizer.name,
            "weights_sha256": store.weights_sha256(weights),
            "scaler": s.trainable.scaler.state_dict(),
            "identity": s.identity,
            "environment": environment,
            "random_numbers": "derived from (seed, step, position); there is no generator state",
        },
    )
    seconds = time.perf_counter() - started
    s.folder.event("checkpoint", step=progress.step, path=path.name, seconds=round(seconds, 3))
    s.folder.write_status(
        "running", last_step=progress.step, last_verified_checkpoint=path.name, resumable=True
    )
    store.prune(s.folder.checkpoints, s.config.run.keep_checkpoints, committed=path)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_numerics(s: Session, step: int, skipped: float) -> None:
    most = MOST_SKIPPED[s.plan.mixed_precision]
    if skipped >= most:
        raise NumericsError(
            "NON-FINITE",
            f"the gradient has not been finite for {skipped:.0f} steps, up to step {step}",
            kept="the weights: none of these steps changed them; and the last checkpoint",
            do="choose a smaller --lr or a longer --warmup_steps"
            + (", or --mixed_precision bf16" if s.plan.mixed_precision == "fp16" else ""),
        )


class _Clock:
    """Time spent in steps, apart from evaluation, saving and the first, compiling step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._mark = time.perf_counter()
        self._steps_at_mark = progress.step
        self._first = True
        self._rate: float | None = None
        self._spent = 0.0

    def steps_per_second(self) -> float | None:
        """Steps a second since the last call; None after the first step of a process."""
        now = time.perf_counter()
        self._spent += now - self._mark
        steps = self.progress.step - self._steps_at_mark
        rate = None if self._first or not steps else steps / self._spent
        self.progress.elapsed_s += self._spent
        self._mark, self._steps_at_mark, self._spent = now, self.progress.step, 0.0
        self._first = False
        if rate:
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        return rate

    def eta(self, steps: int) -> float | None:
        return None if not self._rate or math.isinf(self._rate) else steps / self._rate

    def paused(self) -> "_Pause":
        return _Pause(self)


class _Pause:
    """Time inside does not count."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.clock._spent += time.perf_counter() - self.clock._mark

    def __exit__(self, *_: object) -> None:
        self.clock._mark = time.perf_counter()
