"""The table of text sources, and their parts: a source is a list of chunks, read in parallel, each
in batches of documents. A chunk yields the same documents in the same order each time, on any
machine, so preparation can restart and its result is reproducible.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from outpace.core.errors import DataError
from outpace.core.registry import Registry, nearest
from outpace.data.arrays import Int64
from outpace.tokenizer.ids import Ids

SOURCES = Registry(
    "source",
    {
        "files": "outpace.data.sources.files:FilesSource",
        "pydocs": "outpace.data.sources.pydocs:PydocsSource",
        "openwebtext": "outpace.data.sources.hub:HubSource",
        "fineweb": "outpace.data.sources.hub:HubSource",
        "fineweb-edu": "outpace.data.sources.hub:HubSource",
        "huggingface": "outpace.data.sources.hub:HubSource",
        "pretokenized": "outpace.data.sources.pretokenized:PretokenizedSource",
    },
)

BATCH_CHARACTERS = 1_000_000
"""About how much text is in a batch; one long document may exceed it."""
BYTES_PER_TOKEN = 4.4
"""For English text in GPT-2's vocabulary; other languages and code have fewer."""
Buffer = bytes | memoryview
MOST_DOCUMENT_BYTES = 64 * 2**20
"""Longer documents are refused, which bounds memory; a book has about a megabyte."""


@dataclass(frozen=True)
class Batch:
    """Some documents of a chunk, in order, as text or as tokens."""

    texts: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """The columns that were asked for, one value per document."""
    labels: list[str] | None = None
    """Origin of each document, if that is not the chunk's file."""
    notes: dict[str, int] = field(default_factory=dict)
    """Counts made while reading, to be summed."""
    ids: Ids | None = None
    """The documents' tokens instead of texts, concatenated, without end-of-text."""
    lengths: Int64 | None = None
    """Number of tokens of each document in `ids`."""
    encoded: Sequence[Buffer] | None = None
    """UTF-8 of each text, if the file has it, so that it need not be encoded again."""


class Chunk(Protocol):
    """A part of a source that any thread or process can read on its own: it can be pickled."""

    @property
    def name(self) -> str:
        """Unique in the source, such as a file name, with `#` and the part if it is only a part."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of the input."""
        ...

    @property
    def text_bytes(self) -> int:
        """Approximate size of the text; 0 if unknown."""
        ...

    @property
    def documents(self) -> int | None:
        """Number of documents, if known without reading."""
        ...

    @property
    def stamp(self) -> str:
        """A string that changes with the content. `sha256:...` or another hash of the content is
        trusted for ever; `stat:...` (size and time) is trusted until the preparation is finished;
        if empty, the text is read again and compared."""
        ...

    def read(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        """Yield the documents. DataError says what is wrong with the input, and where."""
        ...


class Source(Protocol):
    """A source of documents."""

    name: str

    def chunks(self) -> Sequence[Chunk]:
        """The parts of the source, in order. Cheap: no text is read."""
        ...

    def describe(self) -> dict[str, Any]:
        """Where the text comes from, for the manifest. No counts."""
        ...


class WholeSource:
    """Base class for a source that only has `documents()`: a single chunk, read in this process."""

    name: str

    def documents(self) -> Iterable[str]:
        raise NotImplementedError

    def chunks(self) -> "Sequence[Chunk]":
        return [_Whole(self)]


@dataclass(frozen=True)
class _Whole:
    source: WholeSource
    size_bytes: int = 1
    text_bytes: int = 0
    documents: int | None = None
    stamp: str = ""

    @property
    def name(self) -> str:
        return self.source.name

    def read(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        if columns:
            raise no_column(self.name, columns[0], [])
        gather = Gather()
        for text in self.source.documents():
            if batch := gather.add(text):
                yield batch
        yield from gather.rest()


class Gather:
    """Collects documents into batches."""

    def __init__(self, columns: Sequence[str] = (), label: str | None = None) -> None:
        """`label` is the origin of documents that have none of their own."""
        self._names, self._label = columns, label
        self.notes: dict[str, int] = {}
        self._clear()

    def _clear(self) -> None:
        self._texts: list[str] = []
        self._encoded: list[Buffer] | None = []
        self._labels: list[str] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in self._names}
        self._size = 0

    def note(self, what: str, count: int = 1) -> None:
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    def add(self, text: str, values: Iterable[Any] = (), label: str | None = None) -> Batch | None:
        """Add a document; return a batch whenever one is full."""
        self._texts.append(text)
        self._encoded = None
        if label is not None:
            self._labels.append(label)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._size += len(text) + 1
        return self._batch() if self._size >= BATCH_CHARACTERS else None

    def extend(
        self, texts: list[str], encoded: list[Buffer] | None, columns: list[list[Any]]
    ) -> Batch | None:
        """Add several documents, with their UTF-8 if available; return a batch whenever one is
        full."""
        self._texts += texts
        if self._encoded is not None:
            self._encoded = None if encoded is None else [*self._encoded, *encoded]
        for column, values in zip(self._columns.values(), columns, strict=True):
            column += values
        self._size += sum(map(len, texts)) + len(texts)
        return self._batch() if self._size >= BATCH_CHARACTERS else None

    def rest(self) -> Iterator[Batch]:
        if self._texts or self.notes:
            yield self._batch()

    def _batch(self) -> Batch:
        if self._label is not None:
            self._labels = [self._label] * len(self._texts)
        batch = Batch(
            self._texts, self._columns, self._labels or None, self.notes, encoded=self._encoded
        )
        self.notes = {}
        self._clear()
        return batch


def no_column(place: str, name: str, known: Sequence[str], flag: str = "--filter") -> DataError:
    do = f"name another column in {flag}"
    return missing(f"{place}: there is no column", name, known, do)


def missing(what: str, name: str, known: Sequence[str], do: str) -> DataError:
    """The error for a missing field or column: names the nearest, and those that exist."""
    return DataError(
        "BAD-INPUT",
        f"{what} {name!r}{nearest(name, known)}; it has {', '.join(known[:20]) or 'none'}",
        do=do,
    )
