"""Documents to shards: one restartable pass over a source. The result does not depend on the number
of workers, the engine, or interruptions.

An engine (by default threads.py) turns the source's chunks into pieces of tokens, in order. The
ledger decides which documents are kept and on which side of the split (ledger.py), and the writer
writes them (writer.py). The journal is written with every shard, so that the same command continues
where an earlier one ended.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core.errors import DataError, UsageError
from outpace.core.files import fsync_folder, replace_json, sha256_json
from outpace.core.limits import usable_cores
from outpace.core.log import note, warn
from outpace.data import nanogpt_split
from outpace.data.decontaminate import Benchmark
from outpace.data.encode import (
    DIGEST,
    Piece,
    Work,
    batch_len,
    batches,
    reference,
    tokenizer_of,
)
from outpace.data.filters import parse_filter
from outpace.data.folder import (
    REMOVED,
    begin_again,
    difference,
    locked,
    open_journal,
    other_dataset,
    stop_on_signals,
)
from outpace.data.forecast import Progress, announce
from outpace.data.journal import GROWING, Journal
from outpace.data.ledger import RECORD, Ledger, Rules
from outpace.data.manifest import manifest_of, settings_in
from outpace.data.shard_file import DELETE, MOST_TOKENS
from outpace.data.shards import JOURNAL, MANIFEST, Dataset, open_dataset
from outpace.data.sources import Chunk, Source
from outpace.data.sources.apart import BY_INPUT, WithValidation
from outpace.data.threads import Task, ThreadEngine
from outpace.data.unchanged import check_unchanged, content_of, is_content, stamps_of
from outpace.data.writer import ShardWriter
from outpace.tokenizer import TOKENIZERS, Tokenizer
from outpace.tokenizer.shared import preload, release

Engine = Callable[[Sequence[Task], Work], Generator[tuple[int, Piece], None, None]]
"""Turns (number, chunk, documents to skip) into (number, piece), in order; closing it stops it."""
SPLITS_BY = ("hash", "nanogpt")


@dataclass(frozen=True)
class PrepareOptions:
    """Everything besides the source that decides what the shards hold."""

    tokenizer: str = "gpt2"
    val_fraction: float = 0.01
    limit_tokens: int | None = None
    shard_tokens: int = 100_000_000
    limit_documents: int | None = None
    filters: tuple[str, ...] = ()
    near_duplicates: bool = False
    decontaminate: tuple[Benchmark, ...] = ()
    split: str = "hash"


def prepare(
    source: Source,
    output: Path,
    options: PrepareOptions,
    *,
    workers: int | None = None,
    engine: Engine | None = None,
    tokenizer_engine: str = "auto",
) -> Dataset:
    """Tokenise `source` into `output` and return the dataset; continues an interrupted run."""
    _check(options, source)
    started = time.perf_counter()
    workers = workers or usable_cores()
    TOKENIZERS.check(options.tokenizer)
    preload(options.tokenizer, tokenizer_engine)
    work = work_of(options, tokenizer_engine)
    chunks = source.chunks()
    reference(options.tokenizer)  # load it now, while the fast one is still loading
    tokenizer = tokenizer_of(work)
    settings = _settings(source, options)
    spec, strict = (_spec(source, chunks, tokenizer, options, out) for out in ((), ("errors",)))
    with contextlib.ExitStack() as stack:
        stack.callback(release)
        stack.enter_context(stop_on_signals(output))
        stack.enter_context(locked(output))
        if (output / MANIFEST).exists():
            return _already_there(output, {spec, strict}, settings, chunks, work)
        journal = open_journal(output, spec, settings, stamps_of(chunks), strict)
        check_unchanged(output, journal, chunks, work)
        announce(output, chunks, options.limit_tokens, tokenizer.version, workers)
        run = _Run(source, output, options, tokenizer, chunks, work, journal)
        dataset = run.to_the_end(engine or ThreadEngine(workers))
    seconds = time.perf_counter() - started
    speed = run.ledger.text_bytes / 1e6 / seconds
    of_text = f" ({speed:.1f} MB of text per second)" if speed else ""
    note(f"{run.ledger.tokens:,} tokens in {seconds:.1f} s{of_text}")
    return dataset


def work_of(options: PrepareOptions, tokenizer_engine: str = "auto") -> Work:
    """What is to be done with each chunk."""
    return Work(
        options.tokenizer,
        tokenizer_engine,
        keep_empty=options.split == "nanogpt",
        filters=tuple(map(parse_filter, options.filters)),
        near_duplicates=options.near_duplicates,
        decontaminate=options.decontaminate,
    )


def _check(options: PrepareOptions, source: Source) -> None:
    if options.shard_tokens > MOST_TOKENS:
        raise UsageError("BAD-VALUE", f"--shard_tokens must be at most {MOST_TOKENS:,}")
    if options.split not in ((BY_INPUT,) if isinstance(source, WithValidation) else SPLITS_BY):
        raise UsageError("BAD-VALUE", f"no split {options.split!r}", do=f"one of {SPLITS_BY}")
    if options.split == BY_INPUT and (options.limit_tokens or options.limit_documents):
        raise UsageError(
            "BAD-VALUE", "a limit may end before --val_input begins", do="leave the limit out"
        )
    if options.split == "nanogpt":
        for flag in ("limit_tokens", "limit_documents", "filters", "near_duplicates",
                     "decontaminate"):  # fmt: skip
            if getattr(options, flag):
                raise UsageError(
                    "BAD-VALUE",
                    f"--split nanogpt keeps every document, as nanoGPT does; --{flag} does not",
                    do="leave one of them out",
                )


def _spec(
    source: Source,
    chunks: Sequence[Chunk],
    tokenizer: Tokenizer,
    options: PrepareOptions,
    without: Sequence[str],
) -> str:
    """Hash of everything that decides the bytes of the shards, except the text itself. `without`
    names parts of the source's description to leave out: --errors makes no difference to a
    preparation that met none."""
    left_out = {"normalisation", *without}
    described = {k: v for k, v in source.describe().items() if k not in left_out}
    sizes = [[c.size_bytes, c.documents] for c in chunks]
    return sha256_json(
        [source.name, DIGEST, described, sizes, tokenizer.vocab_sha256, _option_record(options)]
    )


def _option_record(options: PrepareOptions) -> dict[str, Any]:
    """The options as a manifest records them: without paths."""
    benchmarks = [{"name": b.name, "sha256": b.sha256} for b in options.decontaminate]
    return asdict(options) | {"decontaminate": benchmarks}


def _settings(source: Source, options: PrepareOptions) -> dict[str, Any]:
    """Source and options as a manifest records them, to say in what another dataset differs."""
    return settings_in({"source": {"kind": source.name, **source.describe()},
                        "options": _option_record(options)})  # fmt: skip


def _already_there(
    output: Path, specs: set[str], settings: dict[str, Any], chunks: Sequence[Chunk], work: Work
) -> Dataset:
    """The finished dataset, if it was made from this source; else DataError."""
    dataset = open_dataset(output)
    stamps = stamps_of(chunks)
    same = dataset.manifest.get("spec") in specs
    if same and not (is_content(chunks) and dataset.manifest.get("stamps") == stamps):
        documents = int(dataset.manifest["documents"]["source"])
        same = content_of(chunks, work, documents) == dataset.manifest.get("content")
    if not same:
        known = settings_in(dataset.manifest)
        raise other_dataset(output, difference(known, settings))
    with contextlib.suppress(OSError):  # the disk may be read-only
        for name in (JOURNAL, *GROWING.values()):
            (output / name).unlink(missing_ok=True)
    return dataset


class _Run:
    """One preparation. It takes one pass, or two for a source so small that the fraction leaves one
    side of the split empty."""

    def __init__(
        self,
        source: Source,
        output: Path,
        options: PrepareOptions,
        tokenizer: Tokenizer,
        chunks: Sequence[Chunk],
        work: Work,
        journal: Journal,
    ) -> None:
        self.source, self.output, self.options = source, output, options
        self.tokenizer, self.chunks, self.work = tokenizer, chunks, work
        self.journal = journal
        self.held_out = None
        if options.split == "nanogpt":
            self.held_out = nanogpt_split.held_out(_count(chunks, work))
        self._begin()

    def _begin(self) -> None:
        rules = Rules(
            self.options.val_fraction if self.held_out is None else 0.0,
            self.options.limit_tokens,
            self.options.limit_documents,
            held_out=self.held_out,
            decision=self.journal.decision,
        )
        self.ledger = Ledger(rules)
        self.writer = ShardWriter(
            self.output, self.tokenizer, self.journal, self.ledger, self.options.shard_tokens
        )
        if self.journal.ledger:
            records = np.frombuffer(self.writer.growing["documents"].read(), RECORD)
            sketches = np.frombuffer(self.writer.growing["sketches"].read(), "<u8")
            self.ledger.restore(self.journal.ledger, records, sketches)

    def to_the_end(self, engine: Engine) -> Dataset:
        try:
            if not self.journal.ledger:
                self.writer.save(0, 0)
            self._pass(engine)
            if decision := self._decision():
                self.journal = begin_again(self.output, self.journal, decision)
                self.writer.close()
                self._begin()
                self.writer.save(0, 0)
                self._pass(engine)
            if not sum(self.ledger.kept.values()):
                raise self._nothing_left()
            self._tell_of_an_empty_side()
            self._check_second_pass()
            self.writer.finish(len(self.chunks))
            self._publish()
        finally:
            self.writer.close()
        return open_dataset(self.output)

    def _tell_of_an_empty_side(self) -> None:
        """Warn if validation is separate text, and none of it, or of the training text, is left."""
        if isinstance(self.source, WithValidation):
            for split, text in (("train", "training"), ("val", "validation")):
                if not self.ledger.kept[split]:
                    warn(f"nothing of the {text} text is left: it is empty, or copies of the other")

    def _nothing_left(self) -> DataError:
        removed = self.ledger.removed
        if not set(removed) - {"empty"}:
            what = f"{self.ledger.documents} documents, and none with text"
            return DataError("EMPTY", what, do="check the input files")
        why = ", ".join(f"{count:,} {reason}" for reason, count in removed.items() if count)
        return DataError(
            "EMPTY",
            f"of {self.ledger.documents} documents none is left: {why}",
            do="check the flags that leave documents out, and the input files",
        )

    def _pass(self, engine: Engine) -> None:
        """Continue from where the journal is, to the end or to a limit."""
        work = self.work
        if (self.journal.decision or {}).get("rule") == "cut":
            work = replace(work, cut_fraction=self.options.val_fraction)
        at, skip = self.journal.chunk, self.journal.document
        tasks = [
            (number, chunk, skip if number == at else 0)
            for number, chunk in enumerate(self.chunks)
            if number >= at
        ]
        with contextlib.closing(engine(tasks, work)) as pieces, Progress(self.chunks) as progress:
            progress.begin(at)
            for number, piece in pieces if not self.ledger.done else ():
                start = max(0, skip - piece.first) if number == at else 0
                judged = self.ledger.judge(piece, start, self._is_validation(number))
                self.writer.add(judged, number, self.chunks[number].name)
                for what, count in piece.notes.items():
                    self.ledger.notes[what] = self.ledger.notes.get(what, 0) + count
                progress.advance(number, piece, self.ledger)
                if self.ledger.done:
                    break

    def _is_validation(self, chunk: int) -> bool | None:
        """Whether a chunk is validation; None if the split is by document."""
        if not isinstance(self.source, WithValidation):
            return None
        return chunk >= self.source.validation_from

    def _decision(self) -> dict[str, Any] | None:
        """How to split instead, if the fraction left one side empty but there is enough text."""
        ledger, fraction = self.ledger, self.options.val_fraction
        if fraction == 0 or self.held_out is not None or self.journal.decision is not None:
            return None
        seen = {"content": self._content(), "documents": ledger.documents}
        if ledger.candidates == 1:
            return {"rule": "cut", **seen}
        if ledger.candidates and not ledger.kept["val"]:
            return {"rule": "lowest", "digest": ledger.lowest, **seen}
        if ledger.candidates and not ledger.kept["train"] and not ledger.full:
            return {"rule": "highest", "digest": ledger.highest, **seen}
        return None

    def _content(self) -> str:
        """SHA-256 of the hashes of all documents so far."""
        records = np.frombuffer(self.writer.growing["documents"].read(), RECORD)
        return hashlib.sha256(records["digest"].tobytes()).hexdigest()

    def _check_second_pass(self) -> None:
        """DataError if the source has changed since the split was decided."""
        first = self.journal.decision
        if first is None or (self.ledger.full and first["documents"] > self.ledger.documents):
            return
        if first["content"] != self._content():
            raise DataError(
                "INPUT-CHANGED",
                "the documents changed while they were prepared",
                do=f"{DELETE} and prepare again",
            )

    def _publish(self) -> None:
        """Write the files beside the shards, the manifest last."""
        manifest = manifest_of(
            self.output, self.source, self.tokenizer, _option_record(self.options), self.ledger,
            self.writer, self._content(),
        )  # fmt: skip
        if is_content(self.chunks):
            manifest["stamps"] = stamps_of(self.chunks)
        removed = self.writer.growing["removed"]
        removed.save()
        removed.close()
        if removed.size:
            os.replace(removed.path, self.output / REMOVED)
            fsync_folder(self.output)
            manifest["removed"] = {
                "file": REMOVED,
                "lines": sum(self.ledger.removed.values()),
            }
        else:
            (self.output / REMOVED).unlink(missing_ok=True)  # left by a deleted dataset
        replace_json(self.output / MANIFEST, manifest)
        (self.output / JOURNAL).unlink(missing_ok=True)
        for name in ("documents", "sketches"):
            self.writer.growing[name].close()
            (self.output / GROWING[name]).unlink(missing_ok=True)


def _count(chunks: Sequence[Chunk], work: Work) -> int:
    """Number of documents in a source, reading it where the number is not known."""
    total = 0
    for chunk in chunks:
        if chunk.documents is not None:
            total += chunk.documents
        else:
            for _, batch in batches(chunk, work):
                total += batch_len(batch)
    return total
