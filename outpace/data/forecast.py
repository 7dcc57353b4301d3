"""Forecast of a preparation before it starts, and its progress while it runs."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from outpace.core.console import LIVE, err
from outpace.core.errors import StorageError
from outpace.core.log import note
from outpace.core.units import count, duration
from outpace.data.encode import Piece
from outpace.data.ledger import Ledger
from outpace.data.sources import BYTES_PER_TOKEN, Chunk
from outpace.data.sources.pretokenized import TokenChunk

BYTES_PER_SECOND = {"fastokens": 90e6, "tiktoken": 10e6}
"""Text per second for one thread, including reading and writing, on a slow machine; the one of
docs/data-format.md does half as much again with fastokens."""
SLACK = 0.8
"""A preparation may still fit if the disk has this share of the estimate."""
TOLD_EVERY_S = 60.0
"""Seconds between progress lines without a terminal."""


def announce(
    output: Path, chunks: Sequence[Chunk], limit_tokens: int | None, engine: str, workers: int
) -> None:
    """Print the expected amounts. StorageError if the disk is much too small."""
    text = sum(chunk.text_bytes for chunk in chunks)
    if not text:
        return
    tokens = min(text / BYTES_PER_TOKEN, limit_tokens or float("inf"))
    there = sum(f.stat().st_size for f in output.glob("*.bin*"))
    needed, free = 2 * tokens - there, shutil.disk_usage(output).free
    speed = BYTES_PER_SECOND.get(engine.split("-")[0], BYTES_PER_SECOND["fastokens"]) * workers
    if text > 1e6 and not any(isinstance(chunk, TokenChunk) for chunk in chunks):
        seconds = max(1.0, tokens * BYTES_PER_TOKEN / speed)
        note(
            f"some {text / 1e9:.3g} GB of text: about {count(tokens)} tokens, "
            f"{2 * tokens / 1e9:.3g} GB on disk ({free / 1e9:.3g} GB free), about "
            f"{duration(seconds)} with {engine} on {workers} threads"
        )
    if needed * SLACK > free:
        raise StorageError(
            "DISK-SPACE",
            f"{output} needs about {needed / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free",
            do="free space, choose another --output, or set --limit_tokens",
        )


class Progress:
    """Documents, tokens, MB of text per second and time left: a bar on a terminal, else one line
    per minute."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._before = [0]
        for chunk in chunks:
            self._before.append(self._before[-1] + max(1, chunk.size_bytes))
        self._chunks = chunks
        self._begun = 0.0
        self._within = 0.0
        self._number = -1
        self._text = 0
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(), console=err, transient=True, disable=not LIVE,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        self._bar.start()
        self._task = self._bar.add_task("preparing", total=self._before[-1], numbers="")
        self._started = self._told = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, chunk: int) -> None:
        """Show that everything before a chunk is done, by an earlier process."""
        self._begun = self._before[chunk]
        self._bar.update(self._task, completed=self._before[chunk])

    def advance(self, number: int, piece: Piece, ledger: Ledger) -> None:
        """Count a piece of a chunk as done."""
        size = int(piece.sizes.sum())
        text = size or BYTES_PER_TOKEN * len(piece.ids)  # token files have no text
        self._within = text + (self._within if number == self._number else 0)
        self._number = number
        self._text += size
        in_all = self._chunks[number].text_bytes
        share = min(1.0, self._within / in_all) if in_all else 0.0
        done = self._before[number] + share * (self._before[number + 1] - self._before[number])
        now = time.monotonic()
        numbers = f"{ledger.documents:,} documents, {ledger.tokens:,} tokens"
        if self._text:
            numbers += f", {self._text / 1e6 / max(1e-9, now - self._started):.1f} MB/s"
        self._bar.update(self._task, completed=done, numbers=numbers)
        if not LIVE and now - self._told > TOLD_EVERY_S:
            self._told = now
            if done > self._begun:
                left = (now - self._started) * (self._before[-1] - done) / (done - self._begun)
                part = done / self._before[-1]
                numbers = f"{part:.1%}: {numbers}, about {duration(left)} left"
            note(numbers)
