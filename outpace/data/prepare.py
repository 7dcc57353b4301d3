"""Documents to shards: two passes over a source, restartable, the result independent of both the
number of workers and of interruptions.

The first pass (scan.py) hashes every document; it finds bad input before anything is written,
leaves out empty documents and exact copies, and decides the split. The second tokenises on threads
(tiktoken releases the GIL) and writes whole shards (writer.py), each named in a journal, so that
the same command goes on where an earlier one ended.
"""

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from outpace.core.errors import (
    STOPPED_RESUMABLE,
    OutpaceError,
    RunInUse,
    StorageError,
    UsageError,
)
from outpace.core.files import replace_json, sha256_json
from outpace.core.log import note
from outpace.data.scan import Scan, progress_bar, reread, scan
from outpace.data.shards import MANIFEST, MANIFEST_FORMAT, MOST_TOKENS, Dataset, open_dataset
from outpace.data.sources import Source
from outpace.data.writer import JOURNAL, ShardWriter, restart
from outpace.tokenizer import Ids, Tokenizer, get_tokenizer

BATCH_CHARACTERS = 500_000
"""Text handed to a worker at once, at least; a document is never cut."""


@dataclass(frozen=True)
class PrepareOptions:
    """What decides the shards, besides the source."""

    tokenizer: str = "gpt2"
    val_fraction: float = 0.01
    limit_tokens: int | None = None
    shard_tokens: int = 100_000_000


class Stopped(OutpaceError):
    """A signal ended the preparation; it can go on."""

    exit_code = STOPPED_RESUMABLE


def prepare(
    source: Source, output: Path, options: PrepareOptions, *, workers: int | None = None
) -> Dataset:
    """Tokenise `source` into `output` and return the dataset; continues what was interrupted."""
    if options.shard_tokens > MOST_TOKENS:
        raise UsageError("BAD-VALUE", f"--shard_tokens must be at most {MOST_TOKENS:,}")
    started = time.perf_counter()
    tokenizer = get_tokenizer(options.tokenizer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_on_signals(output))
        found = scan(source, options.val_fraction)  # finds bad input before the folder is made
        spec = _spec(source, tokenizer, options, found)
        stack.enter_context(_locked(output))
        shards = restart(output, spec)
        if shards is None:
            return open_dataset(output)
        writer = ShardWriter(
            output,
            tokenizer,
            found,
            spec,
            shards,
            shard_tokens=options.shard_tokens,
            limit_tokens=options.limit_tokens,
        )
        _tokenise(source, found, tokenizer, writer, workers or os.cpu_count() or 1)
        replace_json(
            output / MANIFEST, _manifest(output, source, tokenizer, options, found, writer)
        )
        (output / JOURNAL).unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    speed = found.characters / 1e6 / seconds
    note(f"{writer.tokens:,} tokens in {seconds:.1f} s ({speed:.1f} million characters a second)")
    return open_dataset(output)


def _spec(source: Source, tokenizer: Tokenizer, options: PrepareOptions, found: Scan) -> str:
    """Hash of all that decides the bytes of the shards."""
    content = hashlib.sha256(found.digests.tobytes()).hexdigest()
    return sha256_json([source.name, content, tokenizer.vocab_sha256, asdict(options)])


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Make the folder and keep others from preparing into it meanwhile."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunInUse(
            "OUTPUT-IN-USE", f"another process prepares {output}", do="wait for it"
        ) from error
    except OSError as error:
        raise StorageError(
            "OUTPUT",
            f"cannot write to {output}: {error.strerror or error}",
            do="choose another --output",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stop_on_signals(output: Path) -> Iterator[None]:
    """Turn the first SIGTERM or Ctrl-C into `Stopped`; the second ends the process at once. What
    is half written then has another name, and the next run writes it again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        raise Stopped(
            "STOPPED",
            f"{signal.Signals(number).name} received",
            kept=f"the finished shards in {output}",
            do="run the same command again to go on",
        )

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


Piece = tuple[int, str, str]
"""Index of the document in the source, split, text."""


def _tokenise(
    source: Source, found: Scan, tokenizer: Tokenizer, writer: ShardWriter, workers: int
) -> None:
    """The second pass: every document that is still wanted, through the pool, to the writer."""
    done = 0
    with progress_bar() as progress, ThreadPoolExecutor(workers) as pool:
        task = progress.add_task("tokenising", total=found.characters)
        try:
            batches = _batches(_wanted(source, found, writer))
            for batch, ids in _in_order(pool, workers, tokenizer, batches):
                for (index, split, text), tokens in zip(batch, ids, strict=True):
                    if writer.wants(index, split):
                        writer.add(index, split, tokens)
                    done += len(text)
                progress.update(task, completed=done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    writer.finish()


def _wanted(source: Source, found: Scan, writer: ShardWriter) -> Iterator[Piece]:
    """Pieces that are still to be written. As the writer lags behind, a few too many near the
    limit; it is asked again when they reach it."""
    for index, text in reread(source, found):
        if writer.full(index):
            return
        for split, piece in found.pieces(index, text):
            if writer.wants(index, split):
                yield index, split, piece


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[2])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_order(
    pool: ThreadPoolExecutor, workers: int, tokenizer: Tokenizer, batches: Iterable[list[Piece]]
) -> Iterator[tuple[list[Piece], list[Ids]]]:
    """Tokenise on the pool with a bounded window, and yield in the order of the input."""

    def encode(batch: list[Piece]) -> list[Ids]:
        return [tokenizer.encode_array(text) for _, _, text in batch]

    window: deque[tuple[list[Piece], Future[list[Ids]]]] = deque()
    for batch in batches:
        window.append((batch, pool.submit(encode, batch)))
        if len(window) > 2 * workers:
            ready, future = window.popleft()
            yield ready, future.result()
    while window:
        ready, future = window.popleft()
        yield ready, future.result()


def _manifest(
    output: Path,
    source: Source,
    tokenizer: Tokenizer,
    options: PrepareOptions,
    found: Scan,
    writer: ShardWriter,
) -> dict[str, Any]:
    shards = sorted(writer.shards, key=lambda s: s.file)
    by_split = {split: [s for s in shards if s.split == split] for split in ("train", "val")}
    return {
        "format": MANIFEST_FORMAT,
        "name": output.resolve().name,
        "source": {"kind": source.name, **source.describe()},
        "spec": writer.spec,
        "tokenizer": {
            "name": tokenizer.name,
            "version": tokenizer.version,
            "vocab_size": tokenizer.vocab_size,
            "vocab_sha256": tokenizer.vocab_sha256,
        },
        "end_of_text": "first token of every document",
        "options": asdict(options),
        "split": "blake2b-64 of the text below val_fraction"
        if found.cut is None
        else f"the only document is cut at character {found.cut}",
        "documents": {
            "source": len(found.keep),
            "empty_left_out": found.empty,
            "exact_copies_left_out": found.copies,
            **{split: sum(s.documents for s in files) for split, files in by_split.items()},
        },
        "tokens": {split: sum(s.tokens for s in files) for split, files in by_split.items()},
        "unigram_entropy": writer.unigram_entropy(),
        "shards": [asdict(s) for s in shards],
    }
