"""The first pass of `prepare`: read and hash every document, find copies, decide the split.

A document is validation when its hash, as a fraction of 2^64, lies below `val_fraction`, so equal
texts are always on one side and the order of files does not matter. Both sides get something: when
the fraction catches none, the document with the lowest hash is validation; when it catches all, the
one with the highest is training; and a single document gives its last part.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from outpace.core.errors import DataError
from outpace.core.log import err
from outpace.data.sources import Source

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scan:
    """What the first pass found; arrays have one entry a document of the source."""

    digests: npt.NDArray[np.uint64]
    keep: Bools
    """Neither empty nor a copy of an earlier document."""
    validation: Bools
    characters: int
    """Of all kept documents."""
    empty: int
    copies: int
    cut: int | None
    """Where a single document is cut into training and validation, in characters."""

    def pieces(self, index: int, text: str) -> Iterator[tuple[str, str]]:
        """(split, text) of the document at `index` of the source."""
        if not self.keep[index]:
            return
        if self.cut is None:
            yield ("val" if self.validation[index] else "train"), text
        else:
            yield "train", text[: self.cut]
            yield "val", text[self.cut :]

    def documents(self, split: str) -> npt.NDArray[np.int64]:
        """Source indices of a split's documents."""
        if self.cut is not None:
            return np.flatnonzero(self.keep)
        return np.flatnonzero(self.keep & (self.validation == (split == "val")))

    @property
    def has_validation(self) -> bool:
        return self.cut is not None or bool(self.validation.any())


def scan(source: Source, val_fraction: float) -> Scan:
    """Read the whole source. DataError when there is nothing to train on."""
    digests, lengths, empty = array("Q"), array("q"), array("b")
    with progress_bar() as progress:
        task = progress.add_task("reading", total=None)
        for text in source.documents():
            digests.append(digest(text))
            lengths.append(len(text))
            empty.append(not text.strip())
            progress.advance(task, len(text))
    hashes = np.array(digests, np.uint64)
    is_empty = np.array(empty, bool)
    first = np.zeros(len(hashes), bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    keep = first & ~is_empty
    if not keep.any():
        raise DataError(
            "EMPTY", f"{len(keep)} documents, and none with text", do="check the input files"
        )
    validation = keep & (hashes < np.uint64(val_fraction * (2**64 - 2**11)))
    cut = None
    if val_fraction > 0:
        if keep.sum() == 1:
            text = _document(source, int(keep.argmax()))
            cut, validation[:] = _cut_of(text, val_fraction), False
        elif not validation.any():
            validation[np.where(keep, hashes, np.uint64(2**64 - 1)).argmin()] = True
        elif (validation == keep).all():
            validation[np.where(keep, hashes, np.uint64(0)).argmax()] = False
    return Scan(
        hashes,
        keep,
        validation,
        characters=int(np.array(lengths)[keep].sum()),
        empty=int(is_empty.sum()),
        copies=int((~first & ~is_empty).sum()),
        cut=cut,
    )


def reread(source: Source, scan: Scan) -> Iterator[tuple[int, str]]:
    """Yield (index, text) again; DataError when the source is no longer what was scanned."""
    count = 0
    for count, text in enumerate(source.documents(), 1):
        if count > len(scan.digests) or digest(text) != int(scan.digests[count - 1]):
            raise _changed(f"document {count} changed while it was prepared")
        yield count - 1, text
    if count != len(scan.digests):
        raise _changed("documents vanished while they were prepared")


def digest(text: str) -> int:
    """64-bit hash of a document."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def progress_bar() -> Progress:
    """A progress bar on standard error, if that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} characters"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _document(source: Source, index: int) -> str:
    for at, text in enumerate(source.documents()):
        if at == index:
            return text
    raise _changed("documents vanished while they were prepared")


def _cut_of(text: str, fraction: float) -> int | None:
    """Where the last `fraction` of a text begins, at a line's start if one is near; None for a text
    of one character, which has no last part."""
    if len(text) < 2:
        return None
    at = min(max(1, round(len(text) * (1 - fraction))), len(text) - 1)
    line = text.rfind("\n", 0, at) + 1
    return line if line > at // 2 else at


def _changed(what: str) -> DataError:
    return DataError("INPUT-CHANGED", what, do="run the same command again")
