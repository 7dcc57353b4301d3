"""Documents to shards: two passes over a source, restartable, the result independent of both the
number of workers and of interruptions.

The first pass reads and hashes every document. It finds bad input before anything is written,
leaves out empty documents and exact copies, and decides the split: a document is validation when
its hash, as a fraction of 2^64, lies below `val_fraction`, so equal texts are always on one side
and the order of files does not matter. When that leaves none, the document with the lowest hash is
taken; and of a single document, its last part.

The second pass tokenises on threads (tiktoken releases the GIL) and writes whole shards. After each
shard the journal names it, and a restart goes on behind the last document of each split's shards.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from outpace.core.errors import DataError, RunInUse, StorageError
from outpace.core.files import fsync_folder, replace_json, sha256_json
from outpace.core.log import err
from outpace.data.shards import (
    MANIFEST,
    MANIFEST_FORMAT,
    Dataset,
    ShardFile,
    TokenStream,
    open_dataset,
    write_shard,
)
from outpace.data.sources import Source
from outpace.tokenizer import Tokenizer, get_tokenizer

JOURNAL = ".prepare.json"
BATCH_CHARACTERS = 500_000
"""Text handed to a worker at once, at least; a document is never cut."""
Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class PrepareOptions:
    """What decides the shards, besides the source."""

    tokenizer: str = "gpt2"
    val_fraction: float = 0.01
    limit_tokens: int | None = None
    shard_tokens: int = 100_000_000


@dataclass(frozen=True)
class Scan:
    """What the first pass found, one entry a document of the source."""

    digests: npt.NDArray[np.uint64]
    keep: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]
    text_bytes: int
    empty: int
    duplicates: int
    cut: int | None
    """Where a single document is cut into training and validation, in characters."""


def prepare(
    source: Source, output: Path, options: PrepareOptions, *, workers: int | None = None
) -> Dataset:
    """Tokenise `source` into `output` and return the dataset; continues what was interrupted."""
    started = time.perf_counter()
    tokenizer = get_tokenizer(options.tokenizer)
    scan = _scan(source, options.val_fraction)
    spec = _spec(source, tokenizer, options, scan)
    lock = _lock(output)
    shards = _restart(output, spec)
    if shards is None:
        lock.release()
        return open_dataset(output)
    writer = _Writer(output, tokenizer, options.shard_tokens, spec, shards)
    done = 0
    with _progress() as progress, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        task = progress.add_task("tokenising", total=scan.text_bytes)
        batches = _batches(_chosen(source, scan, writer))
        for batch, ids in _in_order(pool, tokenizer, batches):
            for (index, split, text), tokens in zip(batch, ids, strict=True):
                if not writer.full(options.limit_tokens):
                    writer.add(index, split, tokens)
                    done += len(text)
            progress.update(task, completed=done)
            if writer.full(options.limit_tokens):
                break
    writer.finish()
    _write_manifest(output, source, tokenizer, options, scan, spec, writer)
    (output / JOURNAL).unlink(missing_ok=True)
    lock.release()
    seconds = time.perf_counter() - started
    err.print(
        f"{writer.tokens:,} tokens in {seconds:.1f} s ({scan.text_bytes / 1e6 / seconds:.1f} MB/s)",
        style="dim",
    )
    return open_dataset(output)


def _scan(source: Source, val_fraction: float) -> Scan:
    digests, keep, seen = [], [], set()
    text_bytes = empty = duplicates = 0
    only = ""
    with _progress() as progress:
        task = progress.add_task("reading", total=None)
        for text in source.documents():
            digest = _digest(text)
            is_empty = not text.strip()
            is_copy = digest in seen and not is_empty
            empty, duplicates = empty + is_empty, duplicates + is_copy
            seen.add(digest)
            digests.append(digest)
            keep.append(not (is_empty or is_copy))
            if keep[-1]:
                text_bytes, only = text_bytes + len(text), text
            progress.update(task, completed=text_bytes)
    kept = np.array(keep, bool)
    hashes = np.array(digests, np.uint64)
    if not kept.any():
        raise DataError(
            "EMPTY", f"{len(keep)} documents, and none with text", do="check the input files"
        )
    validation = kept & (hashes < np.uint64(min(val_fraction, 1.0) * (2**64 - 2**11)))
    cut = None
    if val_fraction > 0 and kept.sum() == 1:
        cut = _cut_of(only, val_fraction)
    elif val_fraction > 0 and not validation.any():
        lowest = np.where(kept, hashes, np.iinfo(np.uint64).max).argmin()
        validation[lowest] = True
    if cut is None and not (kept & ~validation).any():
        raise DataError(
            "EMPTY", "every document fell into validation", do="choose a smaller --val_fraction"
        )
    return Scan(hashes, kept, validation, text_bytes, empty, duplicates, cut)


def _cut_of(text: str, fraction: float) -> int:
    """Where the last `fraction` of a text begins, at a line's start if one is near."""
    at = max(1, round(len(text) * (1 - fraction)))
    line = text.rfind("\n", 0, at) + 1
    return line if line > at // 2 else at


def _digest(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _spec(source: Source, tokenizer: Tokenizer, options: PrepareOptions, scan: Scan) -> str:
    """Hash of all that decides the bytes of the shards."""
    content = hashlib.sha256(scan.digests.tobytes()).hexdigest()
    return sha256_json([source.name, content, tokenizer.vocab_sha256, asdict(options)])


def _lock(output: Path) -> FileLock:
    """Make the folder and keep others from preparing into it until this process ends."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            "OUTPUT", f"cannot make {output}: {error.strerror}", do="choose another --output"
        ) from error
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunInUse(
            "OUTPUT-IN-USE", f"another process prepares {output}", do="wait for it"
        ) from error
    return lock


def _restart(output: Path, spec: str) -> list[ShardFile] | None:
    """Shards already written for this spec; None when the dataset is complete."""
    for path in (output / MANIFEST, output / JOURNAL):
        if path.exists() and json.loads(path.read_text()).get("spec") != spec:
            raise DataError(
                "OTHER-DATASET",
                f"{output} holds a dataset prepared from other text or settings",
                do="choose another --output, or delete that folder first",
            )
    if (output / MANIFEST).exists():
        return None
    if not (output / JOURNAL).exists():
        if foreign := sorted(output.glob("*.bin")):
            raise DataError(
                "OTHER-DATASET",
                f"{output} holds shards of something else ({foreign[0].name})",
                do="choose another --output",
            )
        replace_json(output / JOURNAL, {"spec": spec, "shards": []})
    shards = [ShardFile(**s) for s in json.loads((output / JOURNAL).read_text())["shards"]]
    TokenStream(output, [s.file for s in shards], 2**16).close()  # each is whole in size
    return shards


class _Writer:
    """Collects documents by split and writes a shard whenever one is full."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, limit: int, spec: str, shards: list[ShardFile]
    ) -> None:
        self.folder, self.limit, self.spec, self.shards = folder, limit, spec, shards
        self.end_of_text = np.array([tokenizer.end_of_text], np.uint16)
        self.pending: dict[str, list[Ids]] = {"train": [], "val": []}
        self.size = {"train": 0, "val": 0}
        self.last = {"train": 0, "val": 0}
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        self.tokens = 0
        for shard in shards:
            self.tokens += shard.tokens
            if shard.split == "train":
                ids = np.empty(shard.tokens, np.uint16)
                TokenStream(folder, [shard.file], tokenizer.vocab_size).read(0, ids)
                self.counts += np.bincount(ids, minlength=len(self.counts))

    def full(self, limit_tokens: int | None) -> bool:
        return limit_tokens is not None and self.tokens >= limit_tokens

    def written(self, split: str) -> int:
        """Source index up to which this split's documents are on disk."""
        return max((s.end_document for s in self.shards if s.split == split), default=0)

    def add(self, index: int, split: str, ids: Ids) -> None:
        if self.pending[split] and self.size[split] + len(ids) + 1 > self.limit:
            self.flush(split)
        document = np.concatenate((self.end_of_text, ids))
        self.pending[split].append(document)
        self.size[split] += len(document)
        self.tokens += len(document)
        self.last[split] = index + 1
        if split == "train":
            self.counts += np.bincount(document, minlength=len(self.counts))

    def flush(self, split: str) -> None:
        if not self.pending[split]:
            return
        number = sum(s.split == split for s in self.shards)
        tokens = np.concatenate(self.pending[split])
        lengths = [len(d) for d in self.pending[split]]
        self.shards.append(
            write_shard(self.folder, split, number, tokens, lengths, self.last[split])
        )
        state = {"spec": self.spec, "shards": [asdict(s) for s in self.shards]}
        replace_json(self.folder / JOURNAL, state)
        self.pending[split], self.size[split] = [], 0

    def finish(self) -> None:
        self.flush("train")
        self.flush("val")

    def unigram_entropy(self) -> float:
        """Entropy of the training tokens' frequencies, in nats a token."""
        p = self.counts[self.counts > 0] / self.counts.sum()
        return float(-(p * np.log(p)).sum())


Piece = tuple[int, str, str]
"""Index of the document in the source, split, text."""


def _chosen(source: Source, scan: Scan, writer: _Writer) -> Iterator[Piece]:
    """Documents that are still to be written, with their split."""
    resume_at = {split: writer.written(split) for split in ("train", "val")}
    index = -1
    for index, text in enumerate(source.documents()):
        if index >= len(scan.digests) or _digest(text) != int(scan.digests[index]):
            raise DataError(
                "INPUT-CHANGED", f"document {index} changed while it was prepared", do="run again"
            )
        if not scan.keep[index]:
            continue
        if scan.cut is not None:
            pieces = [("train", text[: scan.cut]), ("val", text[scan.cut :])]
        else:
            pieces = [("val" if scan.validation[index] else "train", text)]
        for split, piece in pieces:
            if index >= resume_at[split]:
                yield index, split, piece
    if index + 1 != len(scan.digests):
        raise DataError(
            "INPUT-CHANGED", "documents vanished while they were prepared", do="run again"
        )


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
    pool: ThreadPoolExecutor, tokenizer: Tokenizer, batches: Iterable[list[Piece]]
) -> Iterator[tuple[list[Piece], list[Ids]]]:
    """Tokenise on the pool with a bounded window, and yield in the order of the input."""

    def encode(batch: list[Piece]) -> list[Ids]:
        return [np.array(tokenizer.encode(text), np.uint16) for _, _, text in batch]

    window: deque[tuple[list[Piece], Future[list[Ids]]]] = deque()
    for batch in batches:
        window.append((batch, pool.submit(encode, batch)))
        if len(window) > 2 * pool._max_workers:
            ready, future = window.popleft()
            yield ready, future.result()
    for ready, future in window:
        yield ready, future.result()


def _write_manifest(
    output: Path,
    source: Source,
    tokenizer: Tokenizer,
    options: PrepareOptions,
    scan: Scan,
    spec: str,
    writer: _Writer,
) -> None:
    manifest: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "name": output.name,
        "source": {"kind": source.name, **source.describe()},
        "spec": spec,
        "tokenizer": {
            "name": tokenizer.name,
            "version": tokenizer.version,
            "vocab_size": tokenizer.vocab_size,
            "vocab_sha256": tokenizer.vocab_sha256,
        },
        "end_of_text": "first token of every document",
        "options": asdict(options),
        "split": "blake2b-64 of the text below val_fraction"
        if scan.cut is None
        else f"the only document is cut at character {scan.cut}",
        "documents": {
            "source": len(scan.keep),
            "empty_left_out": scan.empty,
            "exact_copies_left_out": scan.duplicates,
            "train": sum(s.documents for s in writer.shards if s.split == "train"),
            "val": sum(s.documents for s in writer.shards if s.split == "val"),
        },
        "tokens": {
            split: sum(s.tokens for s in writer.shards if s.split == split)
            for split in ("train", "val")
        },
        "unigram_entropy": writer.unigram_entropy(),
        "shards": [asdict(s) for s in writer.shards],
    }
    replace_json(output / MANIFEST, manifest)
    fsync_folder(output)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} characters"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
