"""Documents from local files: .txt and .md (a file is a document), .jsonl (a line is one), .parquet
(a row is one); each text format also as .gz, .bz2, .xz or .zst.
"""

import bz2
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from outpace.core.errors import DataError, UsageError
from outpace.core.registry import nearest

TEXT, JSONL, PARQUET = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
BOM = "\ufeff"
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a missing, forbidden, cut or damaged file raises."""


class FilesSource:
    """Every document of the files that `patterns` name (paths, globs or folders), by sorted path.

    Text files lose a byte-order mark and have CRLF turned to LF; the counts go to the manifest.
    """

    name = "files"

    def __init__(self, patterns: list[str], text_field: str = "text") -> None:
        self.text_field = text_field
        self.paths = find_files(patterns)
        self._bom = self._crlf = 0

    def documents(self) -> Iterator[str]:
        self._bom = self._crlf = 0
        for path in self.paths:
            kind = _kind(path)
            read = (
                self._parquet if kind in PARQUET else self._jsonl if kind in JSONL else self._text
            )
            try:
                yield from read(path)
            except UNREADABLE as error:
                raise _fault(path, f"cannot be read: {_reason(error)}") from error

    def describe(self) -> dict[str, Any]:
        root = Path(os.path.commonpath([p.absolute().parent for p in self.paths]))
        return {
            "files": [p.absolute().relative_to(root).as_posix() for p in self.paths],
            "text_field": self.text_field,
            "normalisation": {
                "byte_order_marks_removed": self._bom,
                "files_with_crlf_turned_to_lf": self._crlf,
            },
        }

    def _text(self, path: Path) -> Iterator[str]:
        with _open(path) as f:
            data = f.read()
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise _fault(
                path, f"byte {error.start} is not UTF-8 ({error.reason})", "convert it to UTF-8"
            ) from error
        if text.startswith(BOM):
            self._bom += 1
            text = text.removeprefix(BOM)
        if "\r\n" in text:
            self._crlf += 1
            text = text.replace("\r\n", "\n")
        yield text

    def _jsonl(self, path: Path) -> Iterator[str]:
        with _open(path) as f:
            for number, line in enumerate(f, 1):
                if line.startswith(BOM.encode()):
                    self._bom += 1
                    line = line.removeprefix(BOM.encode())
                if line.strip():
                    yield self._field(path, number, line)

    def _field(self, path: Path, number: int, line: bytes) -> str:
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise _fault(path, f"line {number} is not JSON in UTF-8 ({error})") from error
        if not isinstance(record, dict):
            raise _fault(path, f"line {number} is {type(record).__name__}, not a JSON object")
        text = record.get(self.text_field)
        if isinstance(text, str):
            return text
        if self.text_field in record:
            raise _fault(
                path, f"line {number}: {self.text_field!r} is {type(text).__name__}, not text"
            )
        raise self._no_field(path, f"line {number} has no field", list(record))

    def _no_field(self, path: Path, what: str, known: list[str]) -> DataError:
        return _fault(
            path,
            f"{what} {self.text_field!r}{nearest(self.text_field, known)}; "
            f"it has {', '.join(known[:20]) or 'none'}",
            "name the right one with --text_field",
        )

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        try:
            with pq.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                if self.text_field not in columns:
                    raise self._no_field(path, "there is no column", columns)
                for batch in file.iter_batches(256, columns=[self.text_field]):
                    for value in batch.column(0).to_pylist():
                        row += 1
                        if not isinstance(value, str | None):
                            what = f"{self.text_field!r} is {type(value).__name__}, not text"
                            raise _fault(path, f"row {row}: {what}")
                        yield value or ""
        except (pa.ArrowException, ValueError) as error:
            what = f"is not a whole parquet file (after row {row}): {_reason(error)}"
            raise _fault(path, what) from error


def find_files(patterns: list[str]) -> list[Path]:
    """Files behind paths, globs and folders, sorted, each once."""
    if not patterns:
        raise UsageError("NO-INPUT", "no --input was given", do="add --input 'PATHS_OR_GLOBS'")
    known = [*TEXT, *JSONL, *PARQUET]
    found: dict[str, Path] = {}
    for pattern in patterns:
        pattern = str(Path(pattern).expanduser())
        # A path that exists is meant as it is, though it may hold glob characters.
        names = [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)
        if not names:
            raise DataError(
                "NO-INPUT", f"no file matches {pattern!r}", do="check the path; quote globs"
            )
        for path in map(Path, names):
            if path.is_dir():
                files = [p for p in _files_below(path) if _kind(p) in known]
            elif _kind(path) in known:
                files = [path]
            else:
                raise DataError(
                    "FILE-TYPE",
                    f"{path} is none of {', '.join(known)}",
                    do=f"convert it; compressed text may end in {', '.join(COMPRESSED)}",
                )
            for file in sorted(files):
                found.setdefault(os.path.realpath(file), file)
    if not found:
        raise DataError("NO-INPUT", f"no text files in {', '.join(patterns)}", do="check the path")
    return sorted(found.values())


def _files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder; links to folders are not followed."""

    def refuse(error: OSError) -> NoReturn:
        raise _fault(Path(error.filename), f"cannot be read: {_reason(error)}") from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names)


def _kind(path: Path) -> str:
    """Suffix that says what a file holds, without that of its compression."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix in COMPRESSED and path.stat().st_size == 0:
        raise EOFError("it is empty, and not even a compressed file")
    match suffix:
        case ".gz":
            return cast(BinaryIO, gzip.open(path))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path))
        case ".xz":
            return cast(BinaryIO, lzma.open(path))
        case ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _fault(path: Path, what: str, do: str = "mend or leave out the file") -> DataError:
    return DataError("BAD-INPUT", f"{path}: {what}", do=do)
