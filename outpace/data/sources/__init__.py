"""The table of text sources, and what each is made of: chunks, read in parallel, in batches of
documents. A chunk yields the same documents in the same order each time it is read, anywhere, which
is what makes preparation restartable and its result reproducible.
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
"""Text in a batch, about; one document may be more."""
Buffer = bytes | memoryview
MOST_DOCUMENT_BYTES = 64 * 2**20
"""Longer documents are refused, which bounds memory: a book has a megabyte."""


@dataclass(frozen=True)
class Batch:
    """Some documents of a chunk, in order: texts, or what is tokenised already."""

    texts: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """A value a document, of each of the columns that were asked for."""
    labels: list[str] | None = None
    """Where each document comes from, if not all from the chunk's file."""
    notes: dict[str, int] = field(default_factory=dict)
    """What was counted on the way, to be summed."""
    ids: Ids | None = None
    """Instead of texts: tokens of the documents, concatenated, without any end-of-text."""
    lengths: Int64 | None = None
    """Tokens of each document of `ids`."""
    encoded: Sequence[Buffer] | None = None
    """UTF-8 of each text, where the file has it: to spare encoding what was just decoded."""


class Chunk(Protocol):
    """A part of a source that is read on its own, by any thread or process: it can be pickled."""

    @property
    def name(self) -> str:
        """Unique in the source; a file, say, and `#` and what part of it."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of input."""
        ...

    @property
    def text_bytes(self) -> int:
        """Bytes of text in it, about."""
        ...

    @property
    def documents(self) -> int | None:
        """How many, where that is known without reading."""
        ...

    @property
    def stamp(self) -> str:
        """Changes with the content: `sha256:...` or another hash of it, which is trusted for ever;
        `stat:...`, size and time, which is trusted while a preparation is not finished; or empty,
        so that the text is read again to be compared."""
        ...

    def read(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        """Yield the documents. DataError names what is wrong with the input, and where."""
        ...


class Source(Protocol):
    """Where documents come from."""

    name: str

    def chunks(self) -> Sequence[Chunk]:
        """The parts of the source, in order. Cheap: no text is read."""
        ...

    def describe(self) -> dict[str, Any]:
        """What goes into the manifest: where the text comes from. No counts."""
        ...


class WholeSource:
    """A source of plain `documents()`, in one chunk that stays in this process. A base class."""

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
    """Documents one by one, to batches."""

    def __init__(self, columns: Sequence[str] = (), label: str | None = None) -> None:
        """`label` is where the documents come from that do not say it themselves."""
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
        """A batch whenever one is full."""
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
        """The same for several documents, with their UTF-8 if it is at hand."""
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
    """For a field or column that is not there: the nearest, and those that are."""
    return DataError(
        "BAD-INPUT",
        f"{what} {name!r}{nearest(name, known)}; it has {', '.join(known[:20]) or 'none'}",
        do=do,
    )
