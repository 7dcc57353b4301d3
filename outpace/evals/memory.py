"""When an evaluation runs out of memory: batches are halved, down to one row at a time."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from outpace.core.crash import is_out_of_memory
from outpace.core.errors import OutOfMemory

T = TypeVar("T")


def in_halves(work: Callable[[Sequence[T]], None], items: Sequence[T]) -> None:
    """`work(items)`; if that runs out of memory, `work` on each half in turn, and so on. `work`
    must change nothing when it raises. OutOfMemory if a single item does not fit."""
    try:
        return work(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise no_memory() from error
    gc.collect()  # outside the handler, where the error no longer holds tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(items) + 1) // 2
    in_halves(work, items[:middle])
    in_halves(work, items[middle:])


def no_memory() -> OutOfMemory:
    """The error of an evaluation that does not fit even with one row at a time."""
    return OutOfMemory(
        "EVAL-MEMORY",
        "an evaluation is out of memory with one sequence at a time",
        do="end other programs, or evaluate the checkpoint on another machine",
    )
