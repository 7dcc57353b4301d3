"""Documents from local files: .txt and .md (one document per file), .jsonl (one per line), .parquet
(one per row); each text format also as .gz, .bz2, .xz or .zst. Archives are not read.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from outpace.core.errors import DataError, UsageError
from outpace.core.log import note
from outpace.data.folder import REMOVED
from outpace.data.shards import MANIFEST
from outpace.data.sources import Batch, Chunk
from outpace.data.sources.readers import (
    NOTES,
    Reading,
    declared_bytes,
    fault,
    file_stamp,
    parquet_metadata,
    read_jsonl,
    read_parquet,
    read_texts,
    reason,
)
from outpace.data.sources.token_columns import holds_tokens
from outpace.data.sources.unpack import COMPRESSED, SizeLimit
from outpace.data.token_files import SUFFIXES

TEXT, JSONL, PARQUET = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",)
PACKED_LINES = ".json"
"""Inside a compressed file this suffix means JSON lines, as in C4's .json.gz. An uncompressed .json
may be anything."""
ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".zip", ".7z", ".rar")
TEXTS_BYTES, LINES_BYTES, GROUPS_BYTES = 4 << 20, 16 << 20, 8 << 20
"""Approximate size of a chunk: small text files together, part of a plain .jsonl, the text of some
parquet row groups."""
SHRINKS = 3.0
"""Assumed ratio of text to compressed size, for estimates."""


class FilesSource:
    """Every document in the files named by `patterns` (paths, globs or folders), sorted by path.

    Text files lose a byte-order mark, and CRLF becomes LF; the manifest counts both.
    """

    name = "files"

    def __init__(self, patterns: Sequence[str], how: Reading | None = None) -> None:
        self.paths = find_files(patterns)
        root = os.path.commonpath([p.absolute().parent for p in self.paths])
        self.how = replace(how or Reading(), root=Path(root).as_posix())

    def chunks(self) -> list[Chunk]:
        return file_chunks(self.paths, self.how)

    def describe(self) -> dict[str, Any]:
        return {
            "files": [self.how.label(p) for p in self.paths],
            **self.how.record(),
            "normalisation": dict.fromkeys(NOTES, 0),  # counted when the text is read
        }


@dataclass(frozen=True)
class FileChunk:
    """Some whole text files, some lines of a .jsonl, or some row groups of a parquet file."""

    paths: tuple[str, ...]
    how: Reading
    size_bytes: int
    text_bytes: int
    stamp: str
    part: str = ""
    start: int = 0
    end: int | None = None
    """The range of bytes of a .jsonl, or of row groups of a parquet file."""
    documents: int | None = None

    @property
    def name(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return self.paths[0] + more + self.part

    def read(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        path = Path(self.paths[0])
        if kind(path) in PARQUET:
            groups = None if self.end is None else range(self.start, self.end)
            return read_parquet(path, self.how, columns, groups)
        if kind(path) in JSONL:
            return read_jsonl(path, self.how, columns, self.start, self.end)
        return read_texts([Path(p) for p in self.paths], self.how, columns)


def file_chunks(paths: Sequence[Path], how: Reading) -> list[Chunk]:
    """Local files as chunks, in the order given."""
    chunks: list[Chunk] = []
    texts: list[Path] = []
    size = 0
    for path in paths:
        if kind(path) not in (*JSONL, *PARQUET):
            texts.append(path)
            size += _size(path)
            if size < TEXTS_BYTES:
                continue
        if texts:
            chunks.append(_texts_chunk(texts, how))
            texts, size = [], 0
        if kind(path) in PARQUET:
            chunks += _parquet_chunks(path, how)
        elif kind(path) in JSONL:
            chunks += _jsonl_chunks(path, how)
    if texts:
        chunks.append(_texts_chunk(texts, how))
    return chunks


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise fault(path, f"cannot be read: {reason(error)}") from error


def _grown(path: Path, size: int) -> int:
    return round(size * SHRINKS) if path.suffix.lower() in COMPRESSED else size


def _texts_chunk(paths: list[Path], how: Reading) -> Chunk:
    sizes = [_size(p) for p in paths]
    grown = sum(map(_grown, paths, sizes))
    stamp = " ".join(map(file_stamp, paths))
    return FileChunk(tuple(map(str, paths)), how, sum(sizes), grown, stamp)


def _jsonl_chunks(path: Path, how: Reading) -> Iterator[Chunk]:
    size, stamp, name = _size(path), file_stamp(path), (str(path),)
    if path.suffix.lower() in COMPRESSED or size <= LINES_BYTES:
        yield FileChunk(name, how, size, _grown(path, size), stamp)
        return
    for start in range(0, size, LINES_BYTES):
        end = min(start + LINES_BYTES, size)
        part = f"#{start}-{end}"
        yield FileChunk(name, how, end - start, end - start, stamp, part, start, end)


def _parquet_chunks(path: Path, how: Reading) -> Iterator[Chunk]:
    metadata, stamp = parquet_metadata(path, how.text_field), file_stamp(path)
    sizes = [declared_bytes(metadata, how.text_field, n) for n in range(metadata.num_row_groups)]
    SizeLimit(path).check(sum(unpacked for _, unpacked in sizes))
    cut = holds_tokens(metadata, how.text_field)  # rows of tokens may contain several documents
    first = packed = text = rows = 0
    for group, (compressed, unpacked) in enumerate(sizes):
        packed, text = packed + compressed, text + unpacked
        rows += metadata.row_group(group).num_rows
        if text >= GROUPS_BYTES or group == len(sizes) - 1:
            part = f"#{first}" if first == group else f"#{first}-{group}"
            known = None if cut else rows
            yield FileChunk((str(path),), how, packed, text, stamp, part, first, group + 1, known)
            first, packed, text, rows = group + 1, 0, 0, 0


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files named by paths, globs and folders, sorted, without repeats."""
    if not patterns:
        raise UsageError("NO-INPUT", "no --input was given", do="add --input 'PATHS_OR_GLOBS'")
    known = [*TEXT, *JSONL, *PARQUET]
    found: dict[str, Path] = {}
    left: Counter[str] = Counter()
    for pattern in patterns:
        given = Path(pattern).expanduser()
        if not (named := _named_by(given)):
            raise DataError(
                "NO-INPUT", f"no file matches {str(given)!r}", do="check the path; quote globs"
            )
        for path in named:
            if path.is_dir():
                below, links = _files_below(path)
                files = [p for p in below if kind(p) in known]
                left.update(p.suffix or "without a suffix" for p in below if kind(p) not in known)
                left["links to folders"] += links
                card = path / "README.md"
                if card in files and any(kind(p) in (*JSONL, *PARQUET) for p in files):
                    note(f"{card} is left out: it describes the data beside it")
                    files.remove(card)
            elif kind(path) in known:
                files = [path]
            elif kind(path) in ARCHIVES:
                raise DataError(
                    "ARCHIVE", f"{path} is an archive", do="unpack it, and give the text inside"
                )
            else:
                lines = "; lines of JSON end in .jsonl" if kind(path) == ".json" else ""
                raise DataError(
                    "FILE-TYPE",
                    f"{path} is not one of {', '.join(known)}",
                    do=_as_tokens([path.suffix])
                    or f"convert it; compressed text may end in {', '.join(COMPRESSED)}{lines}",
                )
            for file in sorted(files):
                found.setdefault(os.path.realpath(file), file)
    unread = ", ".join(f"{number:,} {what}" for what, number in sorted(left.items()) if number)
    if not found:
        what = f"no text files in {', '.join(patterns)}" + (f" ({unread})" if unread else "")
        raise DataError("NO-INPUT", what, do=_as_tokens(left) or "check the path")
    if unread:
        note(f"not read: {unread}")
    return sorted(found.values())


def _as_tokens(suffixes: Iterable[str]) -> str:
    """The remedy if there is no text, but there are files that may contain tokens; else empty."""
    maybe_tokens = any(suffix in SUFFIXES for suffix in suffixes)
    return "`outpace prepare pretokenized`, if it contains tokens" if maybe_tokens else ""


def find_these(
    patterns: Sequence[str], wanted: Callable[[Path], bool], what: str, do: str
) -> list[Path]:
    """The `wanted` files among those named by paths, globs and folders, sorted, without repeats.
    DataError, which calls them `what`, if there is none."""
    found: set[Path] = set()
    for pattern in patterns:
        named = _named_by(Path(pattern).expanduser())
        below = [f for path in named for f in (path.iterdir() if path.is_dir() else [path])]
        if not (of_this := set(filter(wanted, below))):
            raise DataError("NO-INPUT", f"no {what} matches {pattern!r}", do=do)
        found |= of_this
    return sorted(found)


def _named_by(given: Path) -> list[Path]:
    """The paths named by a path or a glob. An existing path is taken literally, even if it has glob
    characters."""
    if os.path.lexists(given):
        return [given]
    return list(map(Path, glob.glob(str(given), recursive=True)))


def _files_below(folder: Path) -> tuple[list[Path], int]:
    """Files below a folder, and the number of links to folders, which are not followed."""

    def refuse(error: OSError) -> NoReturn:
        raise fault(Path(error.filename), f"cannot be read: {reason(error)}") from error

    files: list[Path] = []
    links = 0
    for parent, folders, names in os.walk(folder, onerror=refuse):
        prepared = MANIFEST in names  # a dataset prepared into a folder of the text
        files += (Path(parent, name) for name in names if not (prepared and name == REMOVED))
        links += sum(Path(parent, name).is_symlink() for name in folders)
    return files, links


def kind(path: Path) -> str:
    """The suffix that tells a file's format, without the suffix of its compression."""
    if path.suffix.lower() not in COMPRESSED:
        return path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return JSONL[0] if inner == PACKED_LINES else inner
