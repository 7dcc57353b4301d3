"""Micro-batches of a rank, read ahead by a thread.

Step `s` covers the samples [s G, (s + 1) G), G sequences a global batch. Rank r of W takes the r-th
of W equal runs of them, and cuts it into its micro-batches. Where training stands is therefore one
integer, the step, and any number of processes sees the same global batch.
"""

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from outpace.core.errors import DataError
from outpace.data.order import Order
from outpace.data.shards import Dataset

AHEAD = 4
"""Steps' worth of micro-batches kept ready."""


@dataclass(frozen=True)
class MicroBatch:
    """The tokens of one forward pass."""

    tokens: torch.Tensor
    """(B, T + 1) int64."""
    position: int
    """Place of this micro-batch in the global batch."""

    @property
    def inputs(self) -> torch.Tensor:
        return self.tokens[:, :-1]  # (B, T)

    @property
    def targets(self) -> torch.Tensor:
        """The token after each input."""
        return self.tokens[:, 1:]  # (B, T)


@dataclass(frozen=True)
class BatchShape:
    """The arithmetic of a step."""

    micro_batch_size: int
    gradient_accumulation_steps: int
    rank: int = 0
    world_size: int = 1

    @property
    def sequences_per_step(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps * self.world_size


class Loader:
    """Iterate over the steps of a training split, from any step on."""

    def __init__(
        self,
        dataset: Dataset,
        shape: BatchShape,
        *,
        context: int,
        seed: int,
        device: torch.device,
        split: str = "train",
    ) -> None:
        self.stream = dataset.stream(split)
        self.order = Order(len(self.stream), context, seed)
        self.shape, self.context, self.device = shape, context, device
        if self.order.blocks < shape.sequences_per_step:
            raise DataError(
                "TOO-LITTLE-DATA",
                f"a step needs {shape.sequences_per_step} sequences of {context} tokens, and the "
                f"{split} split of {dataset.folder} has {self.order.blocks} "
                f"({len(self.stream):,} tokens)",
                do="prepare more text, or choose a smaller --tokens_per_step or --context",
            )

    def micro_batch(self, step: int, micro_step: int) -> MicroBatch:
        """Read one micro-batch of this rank; host tensors, pinned when they go to a GPU."""
        s = self.shape
        position = s.rank * s.gradient_accumulation_steps + micro_step
        first = step * s.sequences_per_step + position * s.micro_batch_size
        rows = np.empty((s.micro_batch_size, self.context + 1), np.uint16)
        for row, start in zip(rows, self.order.starts(first, len(rows)), strict=True):
            self.stream.read(int(start), row)
        tokens = torch.from_numpy(rows.astype(np.int64))  # (B, T + 1)
        if self.device.type == "cuda":
            tokens = tokens.pin_memory()
        return MicroBatch(tokens, position)

    def steps(self, first: int, last: int) -> Generator[list[MicroBatch], None, None]:
        """Yield the micro-batches of the steps [first, last), read ahead on a thread."""
        ready: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(AHEAD)
        closed = threading.Event()

        def put(item: list[MicroBatch] | BaseException) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read_ahead() -> None:
            try:
                for step in range(first, last):
                    if closed.is_set():
                        return
                    n = self.shape.gradient_accumulation_steps
                    put([self.micro_batch(step, m) for m in range(n)])
            except BaseException as error:  # handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=read_ahead, name="outpace-loader", daemon=True)
        thread.start()
        try:
            for _ in range(first, last):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield [self._to_device(batch) for batch in item]
        finally:
            closed.set()
            thread.join()

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        if self.device.type == "cpu":
            return batch
        return MicroBatch(batch.tokens.to(self.device, non_blocking=True), batch.position)
