"""Files that are either whole or absent: atomic replacement, JSON lines, hashes."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from outpace.core.errors import StorageError
from outpace.core.secrets import redactor

JsonObject = dict[str, Any]


def existing_folder(place: Path) -> Path:
    """The nearest existing folder at or above `place`."""
    place = place.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def fsync_folder(folder: Path) -> None:
    """Make the names inside `folder` survive a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems lack the call
            raise
    finally:
        os.close(fd)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write `content` beside `path`, fsync it, and rename it into place (`whole_file`)."""
    # A file name that is not UTF-8 is written as the escape \udcXX, which JSON reads back.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    replace_lines(path, [data])


def replace_lines(path: Path, lines: Iterable[bytes]) -> None:
    """`replace_file` with lines that need not be in memory: they may come from `path` itself."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    with whole_file(path, temporary) as f:
        f.writelines(lines)


@contextlib.contextmanager
def whole_file(path: Path, temporary: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under the name `temporary`, in the same folder as `path`; once it is
    whole and on the disk it is renamed to `path`. StorageError if the disk fails; on any failure
    `temporary` is removed."""
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise storage_error(path, error) from error
        raise


def replace_json(path: Path, value: Any) -> None:
    """Atomically write `value` as indented JSON. NaN and infinities become null."""
    replace_file(path, json.dumps(clean(value), indent=2, ensure_ascii=False) + "\n")


def append_json_line(path: Path, record: JsonObject) -> None:
    """Append one record as one line, in a single write. If a crash or a full disk cut the last line
    short, start a new one."""
    line = json_line(record)
    with open(path, "a+b") as f:
        if f.tell():
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                line = b"\n" + line
        f.write(line)


def json_line(record: JsonObject) -> bytes:
    """One record as a line of JSON. NaN and infinities become null."""
    text = json.dumps(clean(record), ensure_ascii=False, separators=(",", ":"))
    return f"{text}\n".encode("utf-8", "backslashreplace")


def replace_json_lines(path: Path, records: Iterable[JsonObject]) -> None:
    """Atomically write one line of JSON per record."""
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    replace_file(path, "".join(f"{line}\n" for line in lines))


def read_json_lines(path: Path) -> Iterator[JsonObject]:
    """Yield the records of a JSON-lines file; skip lines that are damaged or cut short."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            if (record := parse_object(line)) is not None:
                yield record


def parse_object(text: str | bytes) -> JsonObject | None:
    """Parse a JSON object; None for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def check_writable(path: Path) -> None:
    """StorageError if `path` cannot be written, or NO-FOLDER; for a check before long work."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except FileNotFoundError as error:
        raise StorageError(
            "NO-FOLDER", f"there is no folder {path.parent}", do="make it first"
        ) from error
    except OSError as error:
        raise storage_error(path, error) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def storage_error(path: Path, error: OSError) -> StorageError:
    """Turn an OSError from a write into the one-line error with exit code 5."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StorageError(
        "STORAGE",
        f"cannot write {path}: {error.strerror or error}",
        do=f"{'free space' if full else 'check the path'} or choose another folder, then run the "
        "same command again",
    )


def clean(value: Any) -> Any:
    """Make a value safe for JSON: NaN and infinities become null, secrets are redacted."""
    return _clean(value, redactor())


def _clean(value: Any, redacted: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {k: _clean(v, redacted) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v, redacted) for v in value]
    return value
