"""Readers for the three kinds of local files: text, JSON lines, parquet. Each yields batches, with
counts of what it changed (byte-order marks, CRLF, replaced, left out).
"""

import functools
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from outpace.core.errors import DataError
from outpace.core.registry import nearest
from outpace.data.shard_file import check_regular
from outpace.data.sources import MOST_DOCUMENT_BYTES, Batch, Buffer, Gather, missing, no_column
from outpace.data.sources.token_columns import holds_tokens, read_tokens
from outpace.data.sources.unpack import PIECE, SizeLimit, open_input

BOM = "\ufeff"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How UTF-16 begins; UTF-8 never contains these bytes."""
SURROGATE = re.compile("[\ud800-\udfff]")
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a missing, forbidden, truncated or damaged file raises."""
ROWS = 16, 64
"""Minimum and maximum number of rows read from a parquet file at once: few, because each may be the
same long text, stored once; more if all texts of a row group together are short."""
TOKEN_ROWS = 256
"""The same for a column of tokens."""
ROWS_BYTES = 2**28
"""Memory limit for the rows read at once."""
MEND = "fix or leave out the file"
MEND_OR_SKIP = "fix the file, or leave such lines out with --errors skip"
OTHER_FIELD = "name another --text_field, or leave such lines out with --errors skip"
OR_REPLACE = "convert it to UTF-8, or choose --errors replace or skip"
BOMS, CRLFS, UNCUT, REPLACED, SKIPPED = NOTES = (
    "byte_order_marks_removed",
    "files_with_crlf_turned_to_lf",
    "files_without_the_separator",
    "documents_with_bad_characters_replaced",
    "bad_documents_left_out",
)


@dataclass(frozen=True)
class Reading:
    """How to read documents from files."""

    text_field: str = "text"
    errors: str = "strict"
    """What becomes of a document that is not UTF-8, a line that is not JSON, or a value that is not
    text: `strict` refuses it, `skip` leaves it out, and `replace` puts U+FFFD in place of bad bytes
    and lone surrogates, and refuses the rest."""
    separator: str = ""
    """Cuts text files into documents."""
    root: str = ""
    """The folder that labels (used to count text by file) are relative to."""

    def label(self, path: Path) -> str:
        """A file's name in the counts."""
        absolute = path.absolute().as_posix()
        return absolute.removeprefix(self.root.rstrip("/") + "/") if self.root else absolute

    def record(self) -> dict[str, str]:
        """For a dataset's description: the text field, and any option that is not the default."""
        asked = {"separator": self.separator, "errors": self.errors}
        changed = {name: value for name, value in asked.items() if value != getattr(Reading, name)}
        return {"text_field": self.text_field, **changed}


class BadDocument(DataError):
    """A document that `--errors skip` leaves out."""


class NoField(BadDocument):
    """A document without the text field."""


def read_texts(paths: Sequence[Path], how: Reading, columns: Sequence[str]) -> Iterator[Batch]:
    """Text files, each one document, or cut at every `separator`."""
    gather = Gather()
    for path in paths:
        if columns:
            raise no_column(str(path), columns[0], [])
        try:
            count = 0
            for at, data in _pieces(path, how.separator.encode()):
                count += 1
                text = _text_of(path, at, data, how, gather)
                if text is not None and (batch := gather.add(text, label=how.label(path))):
                    yield batch
            gather.note(UNCUT, bool(how.separator) and count == 1)
        except UNREADABLE as error:
            raise fault(path, f"cannot be read: {reason(error)}") from error
    yield from gather.rest()


def _pieces(path: Path, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset of the first byte, bytes) of each document of a text file. A line end in the
    separator also matches CRLF, which becomes LF only later."""
    border = re.compile(re.escape(separator).replace(b"\\\n", b"\r?\n"))
    with open_input(path) as f:
        at, data = 0, b""
        for piece in iter(functools.partial(f.read, PIECE), b""):
            data += piece
            begin = 0
            for found in border.finditer(data) if separator else ():
                yield at + begin, data[begin : found.start()]
                begin = found.end()
            at, data = at + begin, data[begin:]
            if len(data) > MOST_DOCUMENT_BYTES:
                raise DataError(
                    "DOCUMENT-SIZE",
                    f"{path}: a document of more than {MOST_DOCUMENT_BYTES >> 20} MiB",
                    do="cut it into several files, or give the text between its documents with "
                    "--separator",
                )
    yield at, data


def _text_of(path: Path, at: int, data: bytes, how: Reading, gather: Gather) -> str | None:
    try:
        text = _decoded(path, data, how, gather, offset=at)
    except BadDocument as bad:
        _skip(bad, how, gather)
        return None
    if text.startswith(BOM):
        gather.note(BOMS)
        text = text.removeprefix(BOM)
    if "\r\n" in text:
        gather.note(CRLFS)
        text = text.replace("\r\n", "\n")
    return text


def read_jsonl(
    path: Path, how: Reading, columns: Sequence[str], start: int = 0, end: int | None = None
) -> Iterator[Batch]:
    """JSON lines; from a plain file only the lines that begin between bytes `start` and `end`. If
    no line has the field, --text_field is probably wrong: that is refused whatever `errors` says.
    """
    gather = Gather(columns, how.label(path))
    no_field, texts = None, 0
    try:
        with open_input(path) as f:
            if start:
                f.seek(start - 1)
                _pass_line(f)
                start = f.tell()
            for at, number, line in _lines(path, f, start, end):
                content = line.removeprefix(BOM.encode())
                gather.note(BOMS, len(content) < len(line))
                if not content.strip():
                    continue
                place = _Place(path, start, number, at + len(line) - len(content))
                try:
                    text, values = _fields(place, content, how, gather, columns)
                except BadDocument as bad:
                    _skip(bad, how, gather)
                    if isinstance(bad, NoField):
                        no_field = no_field or bad
                else:
                    texts += 1
                    if batch := gather.add(text, values):
                        yield batch
    except UNREADABLE as error:
        raise fault(path, f"cannot be read: {reason(error)}") from error
    if no_field and not texts:
        raise no_field
    yield from gather.rest()


def _lines(
    path: Path, f: BinaryIO, start: int, end: int | None
) -> Iterator[tuple[int, int, bytes]]:
    """(offset of its first byte, number counted from `start`, line)."""
    at, number = start, 0
    while (end is None or at < end) and (line := f.readline(MOST_DOCUMENT_BYTES + 1)):
        number += 1
        if len(line) > MOST_DOCUMENT_BYTES:
            place = _Place(path, start, number, at)
            raise DataError(
                "DOCUMENT-SIZE",
                f"{place}: byte {at} begins a line of more than {MOST_DOCUMENT_BYTES >> 20} MiB",
                do="cut it into several documents, or leave it out",
            )
        yield at, number, line
        at += len(line)


def _pass_line(f: BinaryIO) -> None:
    while (part := f.readline(PIECE)) and not part.endswith(b"\n"):
        pass


@dataclass(frozen=True)
class _Place:
    """The place of a line in a file: the `number`-th from byte `start` on, its text at `offset`."""

    path: Path
    start: int
    number: int
    offset: int

    @property
    def line(self) -> int:
        """Line number in the file. Reads everything before it, so only for messages."""
        return _lines_before(self.path, self.start) + self.number

    def __str__(self) -> str:
        return f"{self.path}: line {self.line}"


def _lines_before(path: Path, offset: int) -> int:
    """Number of line ends in a file's first `offset` bytes."""
    lines = 0
    with open_input(path) as f:
        while offset and (piece := f.read(min(PIECE, offset))):
            lines += piece.count(b"\n")
            offset -= len(piece)
    return lines


def _fields(
    place: _Place, data: bytes, how: Reading, gather: Gather, columns: Sequence[str]
) -> tuple[str, list[Any]]:
    """The text and columns of one line."""
    try:
        record = json.loads(_decoded(place.path, data, how, gather, place))
    except (ValueError, RecursionError) as error:
        before = data.decode(errors="replace")[: getattr(error, "pos", 0)]
        byte = place.offset + len(before.encode())
        why = getattr(error, "msg", error)
        raise _bad(f"{place} is not JSON (byte {byte}: {why})", MEND_OR_SKIP) from error
    if not isinstance(record, dict):
        raise _bad(f"{place} is {type(record).__name__}, not a JSON object", MEND_OR_SKIP)
    for name in (how.text_field, *columns):
        if name not in record:
            known = list(record)
            if name != how.text_field:
                raise no_column(str(place), name, known)
            what = f"{place} has no field {name!r}{nearest(name, known)}; it has {', '.join(known)}"
            raise NoField("BAD-INPUT", what, do=OTHER_FIELD)
    text = record[how.text_field]
    if not isinstance(text, str):
        what = f"{place}: {how.text_field!r} is {type(text).__name__}, not text"
        raise _bad(what, OTHER_FIELD)
    if b"\\u" in data and (half := SURROGATE.search(text)):
        if how.errors != "replace":
            what = f"{place}: a lone surrogate at character {half.start()}"
            raise _bad(f"{what} of {how.text_field!r}", OR_REPLACE)
        gather.note(REPLACED)
        text = SURROGATE.sub("\ufffd", text)
    return text, [record[name] for name in columns]


def _skip(bad: BadDocument, how: Reading, gather: Gather) -> None:
    """Count a document as left out, or raise."""
    if how.errors != "skip":
        raise bad
    gather.note(SKIPPED)


def _decoded(
    path: Path,
    data: bytes,
    how: Reading,
    gather: Gather,
    place: _Place | None = None,
    offset: int = 0,
) -> str:
    """Decode `data`, which is the line at `place`, or begins at byte `offset`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        offset = place.offset if place else offset
        utf_16 = offset == 0 and data.startswith(UTF_16)
        if how.errors == "replace" and not utf_16:
            gather.note(REPLACED)
            return data.decode(errors="replace")
        here = 1 + data.count(b"\n", 0, error.start)
        line = place.line if place else _lines_before(path, offset) + here
        why = "the file is UTF-16" if utf_16 else error.reason
        what = f"{path}: line {line}: byte {offset + error.start} is not UTF-8 ({why})"
        raise _bad(
            what, "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)" if utf_16 else OR_REPLACE
        ) from error


@functools.lru_cache(maxsize=4)
def _metadata(path: Path, _stamp: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.metadata


def parquet_metadata(path: Path, text_field: str) -> Any:
    """The metadata of a parquet file; DataError if it is not one, or lacks the text column."""
    import pyarrow as pa

    try:
        check_regular(path)
        metadata = _metadata(path, file_stamp(path))
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        raise fault(path, f"is not a whole parquet file: {reason(error)}") from error
    columns = metadata.schema.to_arrow_schema().names
    if text_field not in columns:
        do = "name the right one with --text_field"
        raise missing(f"{path}: there is no column", text_field, columns, do)
    return metadata


def read_parquet(
    path: Path, how: Reading, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Rows of a parquet file, or of some row groups; a null text is an empty document."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = parquet_metadata(path, how.text_field)
    names = metadata.schema.to_arrow_schema().names
    for name in columns:
        if name not in names:
            raise no_column(str(path), name, names)
    groups = range(metadata.num_row_groups) if groups is None else groups
    row = sum(metadata.row_group(n).num_rows for n in range(groups[0])) if groups else 0
    limit, size = SizeLimit(path), 0
    gather = Gather(columns, how.label(path))
    wanted = list(dict.fromkeys([how.text_field, *columns]))
    try:
        # Arrow's own threads, for reading ahead and decoding, would compete with ours, of which
        # there is one per core.
        with pq.ParquetFile(path, metadata=metadata, pre_buffer=False) as file:
            if holds_tokens(metadata, how.text_field):
                batches = file.iter_batches(TOKEN_ROWS, groups, wanted)
                yield from read_tokens(batches, path, how.text_field, row, columns)
                return
            at_once = _rows(metadata, how.text_field, groups)
            for rows in file.iter_batches(at_once, groups, wanted, use_threads=False):
                column = rows.column(how.text_field)
                left_out: set[int] = set()
                try:
                    texts, utf_8 = column.to_pylist(), _utf_8(column)
                except UnicodeDecodeError:
                    texts, utf_8 = _mended(path, column, how, gather, row, left_out), None
                for n, text in enumerate(texts):
                    if type(text) is str:
                        size += len(text)
                    elif text is None:
                        texts[n] = ""
                    else:
                        what = f"{how.text_field!r} is {type(text).__name__}, not text"
                        raise fault(path, f"row {row + n + 1}: {what}")
                row += len(texts)
                limit.check(size)
                values = [rows.column(c).to_pylist() for c in columns]
                if left_out:
                    texts, *values = (
                        [v for n, v in enumerate(of_rows) if n not in left_out]
                        for of_rows in (texts, *values)
                    )
                if batch := gather.extend(texts, utf_8, values):
                    yield batch
    except (pa.ArrowException, ValueError, *UNREADABLE) as error:
        what = f"is not a whole parquet file (after row {row}): {reason(error)}"
        raise fault(path, what) from error
    yield from gather.rest()


def _mended(
    path: Path, column: Any, how: Reading, gather: Gather, row: int, left_out: set[int]
) -> list[str | None]:
    """The texts of a column that is not all UTF-8, treated as `errors` says; row numbers to leave
    out are added to `left_out`. BadDocument names the row, counted from `row`."""
    import pyarrow as pa

    texts: list[str | None] = []
    for n, data in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            texts.append(None if data is None else data.decode())
        except UnicodeDecodeError as error:
            texts.append(data.decode(errors="replace"))
            if how.errors == "replace":
                gather.note(REPLACED)
                continue
            what = f"{path}: row {row + n + 1}: byte {error.start} of its text is not UTF-8"
            _skip(_bad(f"{what} ({error.reason})", OR_REPLACE), how, gather)
            left_out.add(n)
    return texts


def _rows(metadata: Any, field: str, groups: Sequence[int]) -> int:
    """How many rows to read at once, assuming the longest text is as long as its row group
    unpacked."""
    longest = max((declared_bytes(metadata, field, n)[1] for n in groups), default=1)
    least, most = ROWS
    return min(most, max(least, ROWS_BYTES // max(1, longest)))


def _utf_8(column: Any) -> list[Buffer] | None:
    """Views of the bytes of a text column, without copying; None if it is stored otherwise."""
    import pyarrow as pa

    width = {pa.string(): np.int32, pa.large_string(): np.int64}.get(column.type)
    if width is None or column.null_count or not len(column):
        return None
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1].tolist()
    text = memoryview(b"" if data is None else data)
    return [text[a:b] for a, b in itertools.pairwise(ends)]


def declared_bytes(metadata: Any, field: str, group: int) -> tuple[int, int]:
    """(compressed, unpacked) size in bytes of a row group's column, as declared by the file."""
    rows = metadata.row_group(group)
    columns = [rows.column(n) for n in range(rows.num_columns)]
    mine = [c for c in columns if c.path_in_schema.split(".")[0] == field]
    return (
        sum(c.total_compressed_size for c in mine),
        sum(c.total_uncompressed_size for c in mine),
    )


def file_stamp(path: Path) -> str:
    """Size and modification time; empty if the file cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"stat:{status.st_size}:{status.st_mtime_ns}"


def reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def fault(path: Path, what: str, do: str = MEND) -> DataError:
    return DataError("BAD-INPUT", f"{path}: {what}", do=do)


def _bad(what: str, do: str = MEND) -> BadDocument:
    return BadDocument("BAD-INPUT", what, do=do)
