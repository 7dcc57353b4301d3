"""Faults inside the training, put in from outside: functions for `harness.start(setup=...)` that
change the package in the child alone. Steps are optimiser steps, counted from 1."""

import contextlib
import dataclasses
import datetime
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import psutil
import torch

from outpace.data.loader import Loader, MicroBatch
from outpace.evals import loss as evaluation_loss
from outpace.evals.tasks import hellaswag
from outpace.model.gpt2 import GPT2
from outpace.train import loop, run
from outpace.train.step import Trainable

NAN = float("nan")


def all_of(*setups: tuple[Any, ...]) -> None:
    """Several setups, each (function, arguments...)."""
    for function, *arguments in setups:
        function(*arguments)


def ours(rank: int | None) -> bool:
    """Whether a fault of process `rank` (None: of each) is this process's."""
    return rank is None or int(os.environ.get("RANK", "0")) == rank


def around_steps(
    change: Callable[[Trainable, int, list[MicroBatch]], contextlib.AbstractContextManager[None]],
) -> None:
    """Have each optimiser step run inside `change(trainable, step, batches)`."""
    real = loop.train_step

    def wrapped(t: Trainable, batches: list[MicroBatch], *, step: int, **options: Any) -> Any:
        with change(t, step + 1, batches):
            return real(t, batches, step=step, **options)

    loop.train_step = wrapped  # type: ignore[assignment]


# Numerics.


def gradient(steps: Collection[int], factor: float = NAN, rank: int | None = None) -> None:
    """One element of one gradient is multiplied by `factor` at `steps`; the loss is as it was."""

    def hook(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        grad.view(-1)[0] *= factor
        return grad

    @contextlib.contextmanager
    def change(t: Trainable, step: int, _batches: list[MicroBatch]) -> Iterator[None]:
        hit = step in steps and ours(rank)
        handle = dict(t.model.named_parameters())["wte.weight"].register_hook(hook) if hit else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    around_steps(change)


def loss(steps: Collection[int], factor: float = NAN, rank: int | None = None) -> None:
    """The loss, and with it every gradient, is multiplied by `factor` at `steps`."""
    around_steps(lambda t, step, _: _scaled(t, factor, step in steps and ours(rank)))


def loss_of_data(data_steps: Collection[int], factor: float = NAN) -> None:
    """`loss`, where the batch is that of one of the places in the order of the data."""
    place_of: dict[bytes, int] = {}
    read = Loader.read_step

    def read_step(self: Loader, step: int, out: np.ndarray) -> None:
        read(self, step, out)
        first = out[: self.shape.micro_batch_size].astype(np.int64)
        place_of[first.tobytes()] = step

    Loader.read_step = read_step  # type: ignore[method-assign]
    around_steps(
        lambda t, _, batches: _scaled(
            t, factor, place_of[batches[0].tokens.numpy().tobytes()] in data_steps
        )
    )


@contextlib.contextmanager
def _scaled(t: Trainable, factor: float, hit: bool) -> Iterator[None]:
    forward = t.forward
    if hit:
        t.forward = lambda idx, targets: forward(idx, targets) * factor
    try:
        yield
    finally:
        t.forward = forward


def replica(step: int, rank: int) -> None:
    """After `step`, one bit of one weight of one process is another."""

    @contextlib.contextmanager
    def change(t: Trainable, at: int, _batches: list[MicroBatch]) -> Iterator[None]:
        yield
        if at == step and ours(rank):
            weight = t.model.get_parameter("wte.weight").detach()
            weight.view(torch.int32)[0, 0] ^= 1 << 12

    around_steps(change)


# What is computed.


def record_rows(path: str) -> None:
    """Append a line for each optimiser step: the step, and the rows of tokens it was given by their
    place in the global batch."""

    @contextlib.contextmanager
    def change(_t: Trainable, step: int, batches: list[MicroBatch]) -> Iterator[None]:
        yield
        rows = [[b.position * len(b.tokens) + i, *r] for b in batches
                for i, r in enumerate(b.tokens.tolist())]  # fmt: skip
        with open(path, "ab", buffering=0) as f:
            f.write(json.dumps([step, rows]).encode() + b"\n")

    around_steps(change)


def at_forward(
    number: int, what: int, training: bool = True, count: str = "", rank: int | None = None
) -> None:
    """At the `number`-th forward pass, of training or of evaluation, send this process the signal
    `what`. All passes are counted in the file `count`, a byte each."""
    real = GPT2.hidden
    seen = 0

    def hidden(self: GPT2, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal seen
        if self.training == training:
            seen += 1
            if count:
                with open(count, "ab", buffering=0) as f:
                    f.write(b".")
            if seen == number and ours(rank):
                os.kill(os.getpid(), what)
        return real(self, *arguments, **options)

    GPT2.hidden = hidden  # type: ignore[method-assign]


# The machine.


def memory(
    tokens: int, training: bool = True, after: int = 0, rank: int | None = None, host: bool = False
) -> None:
    """A forward pass of more than `tokens` tokens, of training or of evaluation, runs out of
    memory, once it is not among the first `after` of them. `host`: of a CPU."""
    real = GPT2.hidden
    seen = 0

    def hidden(self: GPT2, idx: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal seen
        if self.training == training and ours(rank):
            seen += 1
            if seen > after and idx.numel() > tokens:
                if host:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, idx, *arguments, **options)

    GPT2.hidden = hidden  # type: ignore[method-assign]


def no_memory_for_a_copy() -> None:
    """The machine says that nothing is free."""
    real = psutil.virtual_memory
    psutil.virtual_memory = lambda: real()._replace(available=0)


def jumping_clock(jumps: tuple[float, ...] = (86400.0, -86400.0, 3600.0)) -> None:
    """Each look at the wall clock finds it set forward or back."""
    seen = 0
    real = time.time

    def jump() -> float:
        nonlocal seen
        seen += 1
        return jumps[seen % len(jumps)]

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Jumping":
            return cls.fromtimestamp(real() + jump(), tz)

    time.time = lambda: real() + jump()
    datetime.datetime = Jumping  # type: ignore[misc]


def threads(number: int) -> None:
    """As OMP_NUM_THREADS does."""
    torch.set_num_threads(number)


def another_torch(version: str) -> None:
    """What torch says that it is."""
    torch.__version__ = version  # type: ignore[assignment]


def small_evaluations(tokens: int) -> None:
    """A validation takes more than one batch."""
    evaluation_loss.BATCH_TOKENS = {"cpu": tokens}


def slow_evaluations(seconds: float) -> None:
    """Each batch of an evaluation takes so long."""
    real = GPT2.hidden

    def hidden(self: GPT2, *arguments: Any, **options: Any) -> torch.Tensor:
        if not self.training:
            time.sleep(seconds)
        return real(self, *arguments, **options)

    GPT2.hidden = hidden  # type: ignore[method-assign]


def plans_otherwise(rank: int) -> None:
    """A process measured another kernel to be the fastest than the others."""
    real = run.plan_run

    def planned(*arguments: Any, **options: Any) -> Any:
        plan, *rest = real(*arguments, **options)
        return dataclasses.replace(plan, attention_backend="eager"), *rest

    if ours(rank):
        run.plan_run = planned


def flags_of(rank: int, flags: list[str]) -> None:
    """That process has more flags than the others."""
    from outpace.cli import train

    real = train.run
    if ours(rank):
        train.run = lambda argv: real([*argv, *flags])


def unreadable_data(step: int, rank: int) -> None:
    """That process finds a damaged shard at the batch of that step."""
    from outpace.core.errors import DataError
    from outpace.data.loader import Loader

    real = Loader.read_step

    def read_step(self: Loader, at: int, out: Any) -> Any:
        if at == step and ours(rank):
            raise DataError("DATA-DAMAGED", "a shard became shorter")
        return real(self, at, out)

    Loader.read_step = read_step  # type: ignore[method-assign]


def any_questions() -> None:
    """HellaSwag questions of one's own are taken for the official ones."""
    read = hellaswag.load
    hellaswag.load = lambda path, complete=True: read(path, complete=False)


def closed_output() -> None:
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.close(writer)
    sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8")


def ignore(number: int) -> None:
    """What nohup does for SIGHUP."""
    signal.signal(number, signal.SIG_IGN)


def signalled(at: int, number: int) -> None:
    """The process gets a signal in optimiser step `at`."""

    @contextlib.contextmanager
    def change(_t: Trainable, step: int, _batches: list[MicroBatch]) -> Iterator[None]:
        if step == at:
            os.kill(os.getpid(), number)
        yield

    around_steps(change)


def slow_steps(seconds: float) -> None:
    """Each optimiser step takes so much longer."""

    @contextlib.contextmanager
    def change(_t: Trainable, _step: int, _batches: list[MicroBatch]) -> Iterator[None]:
        time.sleep(seconds)
        yield

    around_steps(change)


def record_rows_by_rank(path: str) -> None:
    """`record_rows` into `path-RANK`."""
    record_rows(f"{path}-{os.environ['RANK']}")


def address_space(more_bytes: int) -> None:
    """RLIMIT_AS that much above what is taken at the first forward pass."""
    real = GPT2.hidden

    def hidden(self: GPT2, *arguments: Any, **options: Any) -> torch.Tensor:
        GPT2.hidden = real  # type: ignore[method-assign]
        most = psutil.Process().memory_info().vms + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return real(self, *arguments, **options)

    GPT2.hidden = hidden  # type: ignore[method-assign]
