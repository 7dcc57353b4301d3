"""Micro-batches of a rank, read ahead by a thread.

With G sequences in a global batch, step `s` covers the samples [s G, (s + 1) G). Rank r of W takes
the r-th of W equal runs of them, and cuts it into its micro-batches. So the position in the data is
one integer, the step, and any number of processes sees the same global batch.
"""

import math
import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from outpace.core.errors import DataError
from outpace.data.arrays import UInt16
from outpace.data.documents import aligned_samples, document_starts
from outpace.data.mixture import Mixture
from outpace.data.order import Order, OrderSpec, Samples, Source
from outpace.data.staging import Arrival, Staging

AHEAD = 4
"""Steps read ahead."""
AT_ONCE = 1024
"""Samples whose places in the data are computed together."""


@dataclass(frozen=True)
class MicroBatch:
    """The tokens of one forward pass."""

    tokens: torch.Tensor
    """(B, T + 1) int64."""
    position: int
    """Index of this micro-batch in the global batch."""

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
    def sequences_of_rank(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def sequences_per_step(self) -> int:
        return self.sequences_of_rank * self.world_size


@dataclass(frozen=True)
class _Known:
    """A rank's samples of the steps [first, last)."""

    first: int
    last: int
    samples: Samples


class Loader:
    """The batches of the training splits, starting at any step."""

    def __init__(
        self,
        mixture: Mixture,
        shape: BatchShape,
        spec: OrderSpec,
        *,
        device: torch.device,
    ) -> None:
        self.streams = [dataset.stream("train") for dataset in mixture.datasets]
        sources = []
        for dataset, stream, weight in zip(
            mixture.datasets, self.streams, mixture.weights, strict=True
        ):
            starts = None
            if spec.bos_aligned:
                places = document_starts(dataset, "train")
                starts = aligned_samples(places, len(stream), spec.context)
            sources.append(Source(len(stream), weight, starts))
        self.order = Order(sources, spec)
        self.shape, self.spec, self.device = shape, spec, device
        self._known: _Known | None = None
        self._check_size(mixture)

    def _check_size(self, mixture: Mixture) -> None:
        """DataError if there is so little data that a step would read a sample twice."""
        rows = zip(mixture.datasets, self.streams, self.order.blocks, mixture.shares, strict=True)
        for dataset, stream, blocks, share in rows:
            if blocks < (needed := math.ceil(share * self.shape.sequences_per_step)):
                most = int(blocks / share) * self.spec.context
                raise DataError(
                    "TOO-LITTLE-DATA",
                    f"a step needs {needed} sequences of {self.spec.context} tokens, and the "
                    f"train split of {dataset.folder} has {blocks} ({len(stream):,} tokens)",
                    do="prepare more text, or choose "
                    + (f"--tokens_per_step {most} or less" if most else "a smaller --context")
                    + (", or leave --bos_aligned out" if self.spec.bos_aligned else ""),
                )

    def read(self, samples: Samples, out: UInt16) -> None:
        """Fill the rows of `out` (n, T + 1) with one sample each."""
        for number, stream in enumerate(self.streams):
            rows = np.flatnonzero(samples.source == number)
            if len(rows):
                stream.read_rows(samples.start[rows], out, rows)

    def read_step(self, step: int, out: UInt16) -> None:
        """Fill `out` with this rank's samples of a step."""
        self.read(self._samples(step), out)

    def _samples(self, step: int) -> Samples:
        """This rank's samples of a step; computed together with those of the next steps."""
        rows = self.shape.sequences_of_rank
        known = self._known
        if known is None or not known.first <= step < known.last:
            last = step + max(1, AT_ONCE // rows)
            of_steps = np.arange(step, last, dtype=np.int64) * self.shape.sequences_per_step
            mine = self.shape.rank * rows + np.arange(rows, dtype=np.int64)
            positions = (of_steps[:, None] + mine).ravel()
            self._known = known = _Known(step, last, self.order.at(positions))
        at = (step - known.first) * rows
        return known.samples[at : at + rows]

    def micro_batch(self, step: int, micro_step: int) -> MicroBatch:
        """Read a single micro-batch of this rank into host memory; `steps` may read ahead."""
        s = self.shape
        position = s.rank * s.gradient_accumulation_steps + micro_step
        rows = np.empty((s.micro_batch_size, self.spec.context + 1), np.uint16)
        # Not by `_samples`, whose memory belongs to the thread that reads ahead.
        first = step * s.sequences_per_step + position * s.micro_batch_size
        self.read(self.order.samples(first, len(rows)), rows)
        return MicroBatch(torch.from_numpy(rows.astype(np.int64)), position)

    def steps(self, first: int, last: int) -> Generator[list[MicroBatch], None, None]:
        """Yield the micro-batches of the steps [first, last), read ahead on a thread."""
        ready: queue.Queue[Arrival | BaseException] = queue.Queue(AHEAD)
        closed = threading.Event()

        def put(item: Arrival | BaseException) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read_ahead() -> None:
            try:
                if self.device.type == "cuda":
                    torch.cuda.set_device(self.device)  # a new thread starts on GPU 0
                rows, width = self.shape.sequences_of_rank, self.spec.context + 1
                staging = Staging(self.device, rows, width, number=2)
                for step in range(first, last):
                    if closed.is_set():
                        return
                    self.read_step(step, staging.buffer().numpy())
                    put(staging.send())
            except BaseException as error:  # the consumer raises it
                put(error)

        thread = threading.Thread(target=read_ahead, name="outpace-loader", daemon=True)
        thread.start()
        try:
            for _ in range(first, last):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield self._micro_batches(item.wait())
        finally:
            closed.set()
            thread.join()

    def close(self) -> None:
        """Close the shards."""
        for stream in self.streams:
            stream.close()

    def _micro_batches(self, tokens: torch.Tensor) -> list[MicroBatch]:
        s = self.shape
        position = s.rank * s.gradient_accumulation_steps
        parts = tokens.split(s.micro_batch_size)
        return [MicroBatch(part, position + m) for m, part in enumerate(parts)]
