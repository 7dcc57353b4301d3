"""The engine for one machine: threads of this process. All heavy work (parquet, tokenising,
hashing) releases the GIL, and nothing has to be pickled, forked or spawned.

A thread takes the earliest chunk that no other is reading, reads one batch, releases the chunk and
encodes the batch. So one long compressed stream keeps all threads busy, as do many small files, and
only a bounded number of pieces waits for the consumer. The consumer is one of the threads: while
the next piece is not ready, it makes pieces like the others, because one thread more than cores
would only compete with them.
"""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from outpace.data.encode import Piece, Work, batches, encode
from outpace.data.sources import Batch, Chunk

STOP_S = 2
"""Time limit in seconds for all threads to end."""
AHEAD = 64
"""Maximum number of pieces per worker that are begun and not yet taken: about as many as are made
while the consumer hashes a finished shard."""
MOST_HELD = 64 * 2**20
"""Approximate limit on the bytes of tokens waiting for the consumer."""
Task = tuple[int, Chunk, int]
"""(number of the chunk, the chunk, how many of its documents to skip)."""


@dataclass
class _Open:
    """A chunk that is open for reading."""

    number: int
    chunk: Chunk
    batches: Iterator[tuple[int, Batch]]
    reading: bool = False
    read_to_end: bool = False
    taken: int = 0
    """`taken`: pieces begun; `given`: pieces passed to the consumer."""
    given: int = 0
    ready: dict[int, Piece | BaseException] = field(default_factory=dict)


class ThreadEngine:
    """Pieces of chunks in order, made by `workers` threads, the consumer's included."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __call__(
        self, tasks: Sequence[Task], work: Work
    ) -> Generator[tuple[int, Piece], None, None]:
        run = _Run(tasks, work, self.workers)
        try:
            yield from run.results()
        finally:
            run.stop()


class _Run:
    def __init__(self, tasks: Sequence[Task], work: Work, workers: int) -> None:
        self._tasks, self._work = iter(tasks), work
        self._most = AHEAD * workers
        self._begun = self._held = 0
        self._open: list[_Open] = []
        self._stopped = self._no_more = False
        self._change = threading.Condition()
        self._threads = [
            threading.Thread(target=self._help, name=f"outpace-prepare-{n}", daemon=True)
            for n in range(1, workers)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        end = time.monotonic() + STOP_S
        for thread in self._threads:  # abandon one that hangs in a read or a download
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def results(self) -> Iterator[tuple[int, Piece]]:
        while (found := self._next()) is not None:
            if isinstance(found, _Open):
                self._make_piece(found)
                continue
            number, piece = found
            if isinstance(piece, BaseException):
                raise piece
            yield number, piece

    def _next(self) -> tuple[int, Piece | BaseException] | _Open | None:
        """The next piece with the number of its chunk; else a chunk to read from; None at the
        end."""
        with self._change:
            while True:
                if (piece := self._take()) is not None:
                    return piece
                if (chunk := self._claim()) is not None:
                    return chunk
                if self._no_more and not self._open:
                    return None
                self._change.wait()

    def _take(self) -> tuple[int, Piece | BaseException] | None:
        """The next piece, if it is ready."""
        while self._open:
            head = self._open[0]
            if head.given in head.ready:
                piece = head.ready.pop(head.given)
                head.given += 1
                self._begun -= 1
                self._held -= _size(piece)
                self._change.notify_all()
                return head.number, piece
            if not head.read_to_end or head.given < head.taken:
                return None
            self._open.pop(0)
            self._change.notify_all()
        return None

    def _help(self) -> None:
        while True:
            with self._change:
                while (chunk := self._claim()) is None:
                    if self._stopped or (self._no_more and all(c.read_to_end for c in self._open)):
                        return
                    self._change.wait()
            self._make_piece(chunk)

    def _make_piece(self, chunk: _Open) -> None:
        """Read a batch of a chunk and encode it."""
        place, batch = self._read(chunk)
        if batch is None:
            return
        piece: Piece | BaseException
        try:
            piece = encode(chunk.chunk, batch[0], batch[1], self._work)
        except KeyboardInterrupt:  # not an error of the piece: it ends the consumer at once
            raise
        except BaseException as error:  # tiktoken's panics are not Exceptions
            piece = error
        with self._change:
            chunk.ready[place] = piece
            self._held += _size(piece)
            self._change.notify_all()

    def _claim(self) -> _Open | None:
        """Claim the earliest chunk that is not being read. None if there is none, or no room for
        another piece."""
        room = self._begun < self._most and self._held < MOST_HELD
        if self._stopped or not (room or not self._head_is_busy()):
            return None
        for chunk in self._open:
            if not chunk.reading and not chunk.read_to_end:
                return self._mark(chunk)
        if len(self._open) < self._most and (new := self._begin()) is not None:
            return self._mark(new)
        return None

    def _mark(self, chunk: _Open) -> _Open:
        chunk.reading = True
        self._begun += 1
        return chunk

    def _head_is_busy(self) -> bool:
        """Whether the consumer's next piece is already being made, so that no other need be
        begun."""
        return not self._open or self._open[0].given < self._open[0].taken or self._open[0].reading

    def _begin(self) -> _Open | None:
        task = next(self._tasks, None)
        if task is None:
            self._no_more = True
            self._change.notify_all()
            return None
        number, chunk, skip = task
        self._open.append(_Open(number, chunk, batches(chunk, self._work, skip)))
        return self._open[-1]

    def _read(self, chunk: _Open) -> tuple[int, tuple[int, Batch] | None]:
        """The next batch of a chunk, or None at its end, and its position among the chunk's
        pieces."""
        batch: tuple[int, Batch] | None = None
        fault: BaseException | None = None
        try:
            batch = next(chunk.batches, None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            fault = error
        with self._change:
            chunk.reading = False
            place = chunk.taken
            chunk.read_to_end = batch is None
            if fault is not None:
                chunk.ready[place] = fault
            if batch is not None or fault is not None:
                chunk.taken += 1
            else:
                self._begun -= 1
            self._change.notify_all()
        return place, batch


def _size(piece: Piece | BaseException) -> int:
    return piece.ids.nbytes if isinstance(piece, Piece) else 0
