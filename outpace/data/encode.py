"""From a chunk of text to tokens: a pure function of the chunk and the work to be done, so threads,
other processes and other machines all give the same result.

What depends on one document alone is decided here (empty, filtered, contaminated); what depends on
others (copies, split, limits, shard borders) is left to the consumer (prepare.py).
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from outpace.core.errors import DataError
from outpace.data.arrays import Int64, UInt8, UInt64
from outpace.data.decontaminate import Benchmark, overlaps
from outpace.data.filters import LENGTHS, Filter, columns_of
from outpace.data.shard_file import DELETE
from outpace.data.sketch import BEGINNING, sketch
from outpace.data.sources import Batch, Buffer, Chunk
from outpace.tokenizer import Tokenizer, get_tokenizer
from outpace.tokenizer.gpt2 import without_lone_surrogates
from outpace.tokenizer.ids import Ids
from outpace.tokenizer.shared import shared

REASONS = ("", "empty", "filtered", "contaminated", "exact copy", "near duplicate")
"""Why a document is left out, by number; 0 is kept. The last two are decided in ledger.py."""
KEPT, EMPTY, FILTERED, CONTAMINATED, COPY, NEAR = range(6)
DIGEST = "xxh3-64"
CHECKED = 1024
"""One document in so many, chosen by its hash, is encoded again with tiktoken as a check."""


@dataclass(frozen=True)
class Work:
    """Everything that decides how a chunk is encoded. It can be pickled."""

    tokenizer: str = "gpt2"
    engine: str = "auto"
    keep_empty: bool = False
    filters: tuple[Filter, ...] = ()
    near_duplicates: bool = False
    decontaminate: tuple[Benchmark, ...] = ()
    cut_fraction: float | None = None
    """If set, each document is cut in two, the second part this share of its characters."""


@dataclass
class Piece:
    """Some documents of a chunk, in order, as tokens; arrays have one entry per document."""

    first: int
    """Number in the chunk of the first document."""
    ids: Ids
    """Tokens of all documents that are kept, without end-of-text."""
    lengths: Int64
    digests: UInt64
    """`digest` of the text."""
    sizes: Int64
    """Bytes of text, as UTF-8."""
    removed: UInt8
    """Number of the reason (`REASONS`), or 0."""
    notes: dict[str, int] = field(default_factory=dict)
    labels: list[str] | None = None
    details: dict[int, str] = field(default_factory=dict)
    """More about why a document is left out, by its place in the piece."""
    sketches: UInt64 | None = None
    sketch_sizes: Int64 | None = None
    beginnings: list[str] | None = None
    """First words of each document, for the list of near duplicates."""
    cuts: Int64 | None = None
    """(characters, tokens) before the cut of each document."""

    def __len__(self) -> int:
        return len(self.lengths)


def encode_chunk(chunk: Chunk, work: Work, skip: int = 0) -> Iterator[Piece]:
    """Yield the pieces of a chunk, except those wholly within its first `skip` documents."""
    for first, batch in batches(chunk, work, skip):
        yield encode(chunk, first, batch, work)


def batches(chunk: Chunk, work: Work, skip: int = 0) -> Iterator[tuple[int, Batch]]:
    """(number of the first document, batch) of a chunk, except those wholly within its first `skip`
    documents: the part of the work that is in order."""
    first = 0
    for batch in chunk.read(columns_of(work.filters)):
        following = first + batch_len(batch)
        if following > skip or not skip:
            yield first, batch
        first = following


def batch_len(batch: Batch) -> int:
    return len(batch.texts) if batch.lengths is None else len(batch.lengths)


def encode(chunk: Chunk, first: int, batch: Batch, work: Work) -> Piece:
    """Encode one batch. DataError for tokens beyond the vocabulary, or if the check with the other
    tokenizer finds a difference."""
    tokenizer = tokenizer_of(work)
    if batch.lengths is not None:
        return _pass_through(chunk, first, batch, tokenizer, work)
    texts, encoded = _encodable(batch)
    digests = np.array([digest(data) for data in encoded], np.uint64)
    piece = Piece(
        first,
        np.zeros(0, np.uint16),
        np.zeros(len(texts), np.int64),
        digests,
        np.array([len(data) for data in encoded], np.int64),
        _removed(chunk, texts, batch, work),
        dict(batch.notes),
        batch.labels,
    )
    if work.decontaminate:
        _decontaminate(piece, texts, work)
    kept = np.flatnonzero(piece.removed == KEPT)
    wanted = texts if len(kept) == len(texts) else [texts[n] for n in kept]
    if work.near_duplicates:
        sketches = [sketch(bytes(encoded[n])) for n in kept.tolist()]
        piece.sketch_sizes = np.zeros(len(texts), np.int64)
        piece.sketch_sizes[kept] = [len(s) for s in sketches]
        piece.sketches = np.concatenate([np.zeros(0, np.uint64), *sketches])
        piece.beginnings = [" ".join(t[: 4 * BEGINNING].split())[:BEGINNING] for t in texts]
    if work.cut_fraction is not None:
        _encode_cut(piece, kept, wanted, tokenizer, work.cut_fraction)
        return piece
    piece.ids, piece.lengths[kept] = tokenizer.encode_batch(wanted)
    _cross_check(chunk, piece, texts, tokenizer)
    return piece


def _pass_through(
    chunk: Chunk, first: int, batch: Batch, tokenizer: Tokenizer, work: Work
) -> Piece:
    """A piece of documents that are tokens already."""
    assert batch.ids is not None and batch.lengths is not None
    ids, lengths = batch.ids, batch.lengths.astype(np.int64)
    if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
        raise DataError(
            "TOKEN-RANGE",
            f"{chunk.name}: token {int(ids.max())} is beyond the vocabulary of "
            f"{tokenizer.vocab_size}",
            do="the tokens are of another vocabulary; prepare the text itself",
        )
    for flag, on in (("--filter", work.filters), ("--near_duplicates", work.near_duplicates),
                     ("--decontaminate", work.decontaminate)):  # fmt: skip
        if on:
            raise DataError("TOKENS", f"{chunk.name} has tokens: {flag} needs text", do="drop it")
    digests = digests_of(batch)
    removed = np.where((lengths == 0) & (not work.keep_empty), EMPTY, KEPT).astype(np.uint8)
    piece = Piece(
        first, ids, lengths, digests, np.zeros(len(lengths), np.int64),
        removed, dict(batch.notes), batch.labels,
    )  # fmt: skip
    if work.cut_fraction is not None:
        at = np.round(lengths * (1 - work.cut_fraction)).astype(np.int64)
        at = np.maximum(np.minimum(at, lengths - 1), np.minimum(1, lengths))
        piece.cuts = np.stack([at, at], 1)
    return piece


def digest(data: Buffer) -> int:
    """64-bit hash of a document. XXH3, because a cryptographic hash would cost a tenth of all the
    work; 64 bits would not resist deliberate collisions in any case."""
    return xxhash.xxh3_64_intdigest(data)


def digests_of(batch: Batch) -> UInt64:
    """Hashes of a batch's documents."""
    if batch.lengths is None or batch.ids is None:
        return np.array([digest(data) for data in _encodable(batch)[1]], np.uint64)
    ends = np.cumsum(batch.lengths)
    spans = zip((ends - batch.lengths).tolist(), ends.tolist(), strict=True)
    return np.array([digest(batch.ids[a:b].astype("<u2").tobytes()) for a, b in spans], np.uint64)


def tokenizer_of(work: Work) -> Tokenizer:
    """The tokenizer of this process."""
    return shared(work.tokenizer, work.engine)


def _encodable(batch: Batch) -> tuple[list[str], Sequence[Buffer]]:
    """Texts and their UTF-8, with lone surrogates replaced."""
    texts = batch.texts
    if batch.encoded is not None:
        return texts, batch.encoded
    try:
        return texts, [text.encode() for text in texts]
    except UnicodeEncodeError:
        texts = [without_lone_surrogates(text) for text in texts]
        return texts, [text.encode() for text in texts]


def _removed(chunk: Chunk, texts: list[str], batch: Batch, work: Work) -> UInt8:
    removed = np.zeros(len(texts), np.uint8)
    if not work.keep_empty:
        removed[[n for n, text in enumerate(texts) if not text or text.isspace()]] = EMPTY
    for wanted in work.filters:
        values: Sequence[Any]
        if wanted.name in LENGTHS:
            values = [LENGTHS[wanted.name](text) for text in texts]
        else:
            values = batch.columns[wanted.name]
        out = [n for n, value in enumerate(values) if not wanted.keeps(value, chunk.name)]
        removed[[n for n in out if removed[n] == KEPT]] = FILTERED
    return removed


def _decontaminate(piece: Piece, texts: list[str], work: Work) -> None:
    """Mark what overlaps with an evaluation."""
    kept = np.flatnonzero(piece.removed == KEPT).tolist()
    found = overlaps(work.decontaminate, [texts[n] for n in kept])
    piece.details |= {kept[n]: how for n, how in found.items()}
    piece.removed[list(piece.details)] = CONTAMINATED


def _encode_cut(
    piece: Piece, kept: Int64, texts: list[str], tokenizer: Tokenizer, fraction: float
) -> None:
    """Encode the two parts of each document separately."""
    cuts = [cut_of(text, fraction) for text in texts]
    halves = [(t[:cut], t[cut:]) for t, cut in zip(texts, cuts, strict=True)]
    piece.ids, lengths = tokenizer.encode_batch([half for pair in halves for half in pair])
    piece.lengths[kept] = lengths[0::2] + lengths[1::2]
    piece.cuts = np.zeros((len(piece.lengths), 2), np.int64)
    piece.cuts[kept] = np.stack([np.array(cuts, np.int64), lengths[0::2]], 1)


@functools.cache
def reference(name: str) -> Tokenizer:
    """The reference tokenizer for checks, loaded once."""
    return get_tokenizer(name, "tiktoken")


def cut_of(text: str, fraction: float) -> int:
    """Where the last `fraction` of a text begins: at the start of a line if one is near. A text of
    one character is not cut, so its length."""
    if len(text) < 2:
        return len(text)
    at = min(max(1, round(len(text) * (1 - fraction))), len(text) - 1)
    line = text.rfind("\n", 0, at) + 1
    return line if line > at // 2 else at


def _cross_check(chunk: Chunk, piece: Piece, texts: list[str], tokenizer: Tokenizer) -> None:
    """Encode one document in `CHECKED` again with the reference."""
    if not tokenizer.version.startswith("fastokens"):
        return
    chosen = np.flatnonzero((piece.digests % np.uint64(CHECKED) == 0) & (piece.removed == KEPT))
    if not len(chosen):
        return
    ends = np.cumsum(piece.lengths)
    for n in chosen.tolist():
        checker = reference(tokenizer.name)
        found = piece.ids[ends[n] - piece.lengths[n] : ends[n]]
        if not np.array_equal(found, checker.encode_batch([texts[n]])[0]):
            raise DataError(
                "TOKENIZER",
                f"{tokenizer.version} and {checker.version} give different ids for document "
                f"{piece.first + n + 1} of {chunk.name}",
                kept="the finished shards",
                do=f"{DELETE}, prepare again with --tokenizer_engine tiktoken, and report it",
            )
