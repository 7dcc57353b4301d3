"""Documents from local files: .txt and .md (a file is a document), .jsonl (a line is one), .parquet
(a row is one); each text format also as .gz, .bz2, .xz or .zst.
"""

import bz2
import glob
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from outpace.core.errors import DataError, UsageError
from outpace.core.registry import nearest

TEXT, JSONL, PARQUET = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
BOM = "\ufeff"


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
            if kind in PARQUET:
                yield from self._parquet(path)
                continue
            try:
                with _open(path) as f:
                    yield from self._jsonl(path, f) if kind in JSONL else self._text(path, f)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise _fault(path, f"cannot be read: {error}") from error

    def describe(self) -> dict[str, Any]:
        return {
            "files": [p.name for p in self.paths],
            "text_field": self.text_field,
            "normalisation": {
                "byte_order_marks_removed": self._bom,
                "files_with_crlf_turned_to_lf": self._crlf,
            },
        }

    def _text(self, path: Path, f: IO[bytes]) -> Iterator[str]:
        data = f.read()
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise _fault(path, f"byte {error.start} is not UTF-8 ({error.reason})") from error
        if text.startswith(BOM):
            self._bom += 1
            text = text.removeprefix(BOM)
        if "\r\n" in text:
            self._crlf += 1
            text = text.replace("\r\n", "\n")
        yield text

    def _jsonl(self, path: Path, f: IO[bytes]) -> Iterator[str]:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise _fault(path, f"line {number} is not JSON in UTF-8 ({error})") from error
            if not isinstance(record, dict) or not isinstance(record.get(self.text_field), str):
                fields = list(record) if isinstance(record, dict) else []
                raise _fault(
                    path,
                    f"line {number} has no text field {self.text_field!r}"
                    f"{nearest(self.text_field, fields)}; it has {', '.join(fields) or 'none'}",
                    "name the field with --text_field",
                )
            yield record[self.text_field]

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
            if self.text_field not in (columns := file.schema_arrow.names):
                raise _fault(
                    path,
                    f"there is no column {self.text_field!r}{nearest(self.text_field, columns)}; "
                    f"it has {', '.join(columns)}",
                    "name the column with --text_field",
                )
            for batch in file.iter_batches(256, columns=[self.text_field]):
                for value in batch.column(0).to_pylist():
                    yield value if isinstance(value, str) else ""
        except (pa.ArrowException, OSError) as error:
            raise _fault(path, f"is not a whole parquet file: {error}") from error


def find_files(patterns: list[str]) -> list[Path]:
    """Files behind paths, globs and folders, sorted, each once."""
    if not patterns:
        raise UsageError("NO-INPUT", "no --input was given", do="add --input 'PATHS_OR_GLOBS'")
    known = [*TEXT, *JSONL, *PARQUET]
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(p) for p in glob.glob(pattern, recursive=True)]
        if not matches:
            raise DataError(
                "NO-INPUT", f"no file matches {pattern!r}", do="check the path; quote globs"
            )
        for match in matches:
            if match.is_dir():
                found |= {p for p in match.rglob("*") if p.is_file() and _kind(p) in known}
            elif _kind(match) in known:
                found.add(match)
            else:
                raise DataError(
                    "FILE-TYPE",
                    f"{match} is none of {', '.join(known)}",
                    do=f"convert it; compressed text may end in {', '.join(COMPRESSED)}",
                )
    if not found:
        raise DataError("NO-INPUT", f"no text files in {', '.join(patterns)}", do="check the path")
    return sorted(found)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _open(path: Path) -> IO[bytes]:
    match path.suffix:
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _fault(path: Path, what: str, do: str = "mend or leave out the file") -> DataError:
    return DataError("BAD-INPUT", f"{path}: {what}", do=do)
