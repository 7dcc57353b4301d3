"""The story of a run, top to bottom: step, log, validate, sample, save, stop."""

import contextlib
import gc
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from outpace.core.crash import explain
from outpace.core.errors import OutOfMemory, OutpaceError
from outpace.core.log import warn
from outpace.data.loader import MicroBatch
from outpace.optim.schedules import multiplier as lr_multiplier
from outpace.runtime.hardware import Machine, memory_in_use
from outpace.runtime.rollcall import peer_failed
from outpace.train.assemble import Session
from outpace.train.clock import Clock
from outpace.train.display import Display
from outpace.train.evaluate import Evaluation
from outpace.train.guard import Values
from outpace.train.lagged_guard import LaggedGuard
from outpace.train.progress import Progress
from outpace.train.save import save
from outpace.train.step import StepResult, TooLarge, train_step, try_micro_batch
from outpace.train.stop import CONTINUE, FAILED, OUT_OF_MEMORY, SAVE, STOP

Batches = Sequence[MicroBatch]


def train(
    s: Session,
    progress: Progress,
    machine: Machine,
    environment: dict[str, Any],
    *,
    until: int | None = None,
) -> bool:
    """Train to the end of the plan, or to step `until`. Returns whether the run is complete: at the
    plan's end, the last evaluations made; after a stop request it is not. Either way the newest
    step is in a committed checkpoint. Raises Diverged, saving nothing, when too many steps in a row
    were bad."""
    plan, saved_at = s.plan, progress.step
    end = plan.max_steps if until is None else min(until, plan.max_steps)
    guard = LaggedGuard(s, progress)

    def commit() -> None:
        nonlocal saved_at
        if progress.step > saved_at:
            s.watchdog.beat(f"saving step {progress.step}")
            s.saver.join()
            agree(s)  # raises, in all processes, if the previous save failed
            save(s, progress, guard.guard_state(), environment)
            saved_at = progress.step

    shown = s.group.ranks.is_main and until is None
    with Display(progress.step, plan.max_steps, shown) as display:
        evaluation = Evaluation(s, progress, tell=display.line, watch=display.transient)
        rest = end - progress.step
        steps = s.loader.steps(progress.data_step, progress.data_step + rest)
        try:
            if s.trainable.ddp and rest:
                _fit_together(s, progress)
            evaluation.run_missed()
            asked = agree(s)
            clock = Clock(progress)
            while progress.step < end and asked < STOP:
                s.watchdog.beat(f"step {progress.step + 1}")
                batches = next(steps)
                lr = plan.lr * lr_multiplier(
                    s.config.schedule, progress.step, plan.max_steps, plan.warmup_steps
                )
                result = _fitting_step(s, progress, batches, lr, display)
                if result is None:
                    break
                progress.step += 1
                step = progress.step
                guard.enter(result)
                last = step == end

                if last or step == 1 or _due(step, plan.log_every_steps):
                    record = metrics_record(s, progress, guard.newest(), lr, clock, machine)
                    if s.group.ranks.is_main:
                        s.folder.record(s.folder.metrics, record)
                    display.show(record, eta_s=clock.eta(plan.max_steps - step))
                saves = _due(step, plan.save_every_steps) or asked == SAVE
                if not last and (saves or evaluation.is_due(step)):
                    guard.newest()  # wait for the GPU, so that queued steps count as training time
                    with clock.paused():
                        if saves:
                            s.stop.wants_save = False
                            commit()
                        evaluation.run_due(step)
                asked = agree(s)
            finished = until is None and progress.step == plan.max_steps
            clock.settle()
            commit()
            if finished:
                guard.flush()
        finally:
            steps.close()
            s.saver.join()
        agree(s)  # no process leaves before the first has written the checkpoint, or failed to
        if finished:
            finished = evaluation.run_final()
    return finished


def agree(s: Session, code: int = CONTINUE) -> int:
    """The largest of all processes' codes (see `stop.py`), which all of them follow; this one
    contributes `code` and its stop request. Raises if a background thread failed, here or in
    another process."""
    s.watchdog.beat()
    error = _failure(s)
    code = max(code, s.stop.code) if error is None else FAILED + error.exit_code
    everyone = s.group.max(code)
    if error is not None:
        raise error
    if everyone >= FAILED:
        raise peer_failed(everyone - FAILED)
    return everyone


def _failure(s: Session) -> OutpaceError | None:
    """What a background thread of this process failed with."""
    try:
        s.saver.poll()
        if s.shard_check is not None:
            s.shard_check.poll()
    except Exception as error:  # even a bug in such a thread must end all processes
        return explain(error, s.folder.root)
    return None


def _fitting_step(
    s: Session, progress: Progress, batches: Batches, lr: float, display: Display
) -> StepResult | None:
    """`train_step`, halving the micro-batches until they fit in memory."""
    loss_limit, norm_limit = s.guard.skip_limits()
    while True:
        pieces = _cut(batches, progress.pieces)
        try:
            return train_step(
                s.trainable,
                pieces,
                step=progress.step,
                lr=lr,
                agree=lambda code: agree(s, code),
                on_micro_step=partial(display.micro_step, progress.step + 1, len(pieces)),
                loss_limit=loss_limit,
                norm_limit=norm_limit,
            )
        except TooLarge:
            _halve(s, progress)


def _fit_together(s: Session, progress: Progress) -> None:
    """Halve micro-batches until they fit, before any process waits for another in a backward.

    Ends with one synchronised backward: DistributedDataParallel regroups its gradient buckets after
    the first one, which changes the order of sums over three or more processes. With it done here,
    the first step has the same bits in a new run and in a resumed one."""
    with contextlib.closing(s.loader.steps(progress.data_step, progress.data_step + 1)) as one:
        batches = next(one)
    while True:
        batch = _cut(batches, progress.pieces)[0]
        fits = try_micro_batch(s.trainable, batch)
        asked = agree(s, CONTINUE if fits else OUT_OF_MEMORY)
        if asked != OUT_OF_MEMORY:
            break
        _halve(s, progress)
    if asked < STOP:
        try_micro_batch(s.trainable, batch, synchronise=True)


def _cut(batches: Batches, pieces: int) -> list[MicroBatch]:
    """Cut each micro-batch into `pieces` smaller ones: the same rows in the same order."""
    return [
        MicroBatch(part, pieces * batch.position + i)
        for batch in batches
        for i, part in enumerate(batch.tokens.chunk(pieces))
    ]


def _halve(s: Session, progress: Progress) -> None:
    """Halve the rows of a micro-batch and double the micro-steps: the same gradient. OutOfMemory
    if it has only one row."""
    rows = math.ceil(s.plan.micro_batch_size / progress.pieces)
    if rows == 1:
        raise OutOfMemory(
            "MEMORY",
            f"out of memory with one sequence of {s.plan.context:,} tokens at a time",
            kept="the last verified checkpoint",
            do="choose a smaller --context or --model_size, --mixed_precision bf16, or end other "
            "programs",
        )
    progress.pieces *= 2
    gc.collect()
    if s.trainable.device.type == "cuda":
        torch.cuda.empty_cache()
    smaller = math.ceil(s.plan.micro_batch_size / progress.pieces)
    if s.group.ranks.is_main:
        s.folder.event("memory", step=progress.step + 1, micro_batch_size=smaller)
        warn(
            f"[MEMORY] a micro-batch of {rows} sequences does not fit: continuing with {smaller}, "
            "the same batch in more micro-steps"
        )


def metrics_record(
    s: Session,
    progress: Progress,
    values: Values,
    lr: float,
    clock: Clock,
    machine: Machine,
) -> dict[str, Any]:
    """One record of metrics.jsonl. The speed is that of the steps since the last record."""
    plan = s.plan
    rate = clock.steps_per_second()
    tokens_per_second = rate * plan.tokens_per_step if rate else None
    return {
        "step": progress.step,
        "tokens": progress.step * plan.tokens_per_step,
        "loss": values.loss,
        "lr": lr,
        "grad_norm": values.grad_norm,
        "skipped": values.skipped,
        "loss_scale": s.trainable.scaler.get_scale() if s.trainable.scaler.is_enabled() else None,
        "tokens_per_second": tokens_per_second,
        "mfu": plan.mfu(tokens_per_second, machine.peak(plan.mixed_precision)),
        "memory_gib": memory_in_use(s.trainable.device) / 2**30,
        "elapsed_s": progress.elapsed_s,
    }


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
