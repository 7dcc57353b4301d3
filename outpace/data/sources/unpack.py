"""Opening input files, decompressed as they are read and within limits: neither a bomb (a few
kilobytes that unpack to gigabytes) nor a header that asks for gigabytes can exhaust the memory.
"""

import bz2
import functools
import gzip
import io
import lzma
from pathlib import Path
from typing import Any, BinaryIO, cast

from outpace.core.errors import DataError
from outpace.data.shard_file import check_regular

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MOST_BYTES, MOST_RATIO = 64 * 2**20, 200
"""A file that unpacks to more than both is refused. Text shrinks to a tenth, logs of equal lines to
a hundredth; 64 MiB of zeros are 10 kB of xz."""
XZ_MEMORY = 128 * 2**20
"""Memory that an .xz file's header may ask for; `xz -9` makes files that need 65 MiB. Zstandard's
own limit is a window of 128 MiB (ZSTD_WINDOWLOG_LIMIT_DEFAULT in zstd.h)."""
PIECE = 1 << 20


class SizeLimit:
    """Limit on the size a file may unpack to."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        self.most = max(MOST_BYTES, MOST_RATIO * (path.stat().st_size if size is None else size))

    def check(self, size: int) -> None:
        """DataError if `size` bytes are too many."""
        if size > self.most:
            raise DataError(
                "BOMB",
                f"{self.path}: it unpacks to more than {self.most / 2**20:.0f} MiB, over "
                f"{MOST_RATIO} times its size",
                do="leave it out; if the text is meant, unpack the file first",
            )


def open_input(path: Path) -> BinaryIO:
    """Open a regular file for reading, decompressed according to its suffix. Reading raises
    OSError, EOFError, lzma.LZMAError or zlib.error if the file is damaged, and DataError if it is a
    bomb."""
    check_regular(path)
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return open(path, "rb")
    if path.stat().st_size == 0:
        raise EOFError("it is empty, which no compressed file is")
    raw = _Bounded(_unpacked(path, suffix), SizeLimit(path))
    return io.BufferedReader(raw, PIECE)


def _unpacked(path: Path, suffix: str) -> BinaryIO:
    match suffix:
        case ".gz":
            return cast(BinaryIO, gzip.open(path))
        case ".bz2":
            return cast(BinaryIO, _Streams(open(path, "rb"), bz2.BZ2Decompressor))
        case ".xz":
            return cast(BinaryIO, _Streams(open(path, "rb"), _xz_decompressor))
    import pyarrow as pa

    return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))


def _xz_decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


def unpack_xz(data: bytes, path: Path) -> bytes:
    """Unpack .xz data in memory; `path` names it in errors, which are those of `open_input`."""
    stream = cast(BinaryIO, _Streams(io.BytesIO(data), _xz_decompressor))
    with _Bounded(stream, SizeLimit(path, len(data))) as bounded:
        return b"".join(iter(functools.partial(bounded.read, PIECE), b""))


class _Streams(io.RawIOBase):
    """The streams of a .bz2 or .xz file, one after another. `bz2.open` and `lzma.open` ignore what
    follows the last stream, and do not limit xz's memory."""

    def __init__(self, file: BinaryIO, decompressor: Any) -> None:
        self._make, self._decoder = decompressor, decompressor()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        while True:
            packed = b""
            if self._decoder.eof:
                packed = (self._decoder.unused_data or self._file.read(PIECE)).lstrip(b"\0")
                if not packed and not (packed := self._after_padding()):
                    return 0
                self._decoder = self._make()
            elif self._decoder.needs_input and not (packed := self._file.read(PIECE)):
                raise EOFError("it ends in the middle of compressed data")
            data = self._decoder.decompress(packed, len(out))
            if data:
                out[: len(data)] = data
                return len(data)

    def _after_padding(self) -> bytes:
        """The data after the zero padding that may follow an xz stream."""
        while (packed := self._file.read(PIECE)) and not (packed := packed.lstrip(b"\0")):
            pass
        return packed

    def close(self) -> None:
        self._file.close()
        super().close()


class _Bounded(io.RawIOBase):
    """A stream that may not exceed a limit."""

    def __init__(self, stream: BinaryIO, limit: SizeLimit) -> None:
        self._stream, self._limit, self._size = stream, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        data = self._stream.read(len(out))
        self._size += len(data)
        self._limit.check(self._size)
        out[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
