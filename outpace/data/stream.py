"""All shards of a split as one stream of tokens."""

import bisect
import os
import resource
import threading
from io import FileIO
from pathlib import Path

import numpy as np

from outpace.data.arrays import Int64, UInt16
from outpace.data.shard_file import HEADER_BYTES, damaged, read_header, token_fault

MOST_OPEN_FILES = 512
_PREADV = getattr(os, "preadv", None)  # not everywhere


class TokenStream:
    """Uses plain reads: if a file is cut short meanwhile, they give a clear error, while a memory
    map would kill the process. Threads may share it."""

    def __init__(self, folder: Path, files: list[str], vocab_size: int) -> None:
        self.folder, self.files, self.vocab_size = folder, files, vocab_size
        counts = [read_header(folder / file) for file in files]
        self._seen = [_identity(folder / file) for file in files]
        self._borders = np.array([0, *np.cumsum(counts, dtype=np.int64)], np.int64)
        self._first: list[int] = self._borders.tolist()
        self._open: dict[int, FileIO] = {}
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return self._first[-1]

    def read(self, start: int, out: UInt16) -> None:
        """Fill `out` with the tokens from `start` on, across shard borders."""
        assert start >= 0 and start + len(out) <= len(self), (start, len(out), len(self))
        done = 0
        while done < len(out):
            shard = bisect.bisect_right(self._first, start + done) - 1
            offset = start + done - self._first[shard]
            take = min(len(out) - done, self._first[shard + 1] - start - done)
            with self._reading:
                self._read(shard, offset, out[done : done + take])
            done += take

    def read_rows(self, starts: Int64, out: UInt16, rows: Int64) -> None:
        """Fill the given rows of `out` (any, T), which is contiguous, with the tokens from each
        start on: one system call per row, about a microsecond."""
        width = out.shape[1]
        shards = np.searchsorted(self._borders, starts, "right") - 1
        inside = starts + width <= self._borders[shards + 1]
        places = HEADER_BYTES + 2 * (starts - self._borders[shards])
        into, size, rest = out.data.cast("B"), 2 * width, []
        wanted = zip(rows.tolist(), inside.tolist(), shards.tolist(), places.tolist(), strict=True)
        with self._reading:
            for i, (row, is_inside, shard, place) in enumerate(wanted):
                buffer = into[row * size : (row + 1) * size]
                if not (is_inside and self._pread(shard, buffer, place)):
                    rest.append(i)  # crosses a border, or failed: `read` says why
        filled = out if len(rows) == len(out) else out[rows]
        if filled.max(initial=0) >= self.vocab_size:
            rest = list(range(len(rows)))
        for i in rest:
            self.read(int(starts[i]), out[rows[i]])

    def _pread(self, shard: int, buffer: memoryview, place: int) -> bool:
        """Whether all of the buffer could be filled in one call."""
        file = self._open.get(shard)
        if file is None:
            file = self._file(shard, self.folder / self.files[shard])
        try:
            return _PREADV is not None and _PREADV(file.fileno(), (buffer,), place) == len(buffer)
        except OSError:
            return False

    def _read(self, shard: int, offset: int, out: UInt16) -> None:
        path = self.folder / self.files[shard]
        rest = out.data.cast("B")
        try:
            file = self._file(shard, path)
            file.seek(HEADER_BYTES + 2 * offset)
            while rest and (got := file.readinto(rest)):
                rest = rest[got:]
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from error
        if rest:
            raise damaged(path, "it became shorter while it was in use")
        if beyond := token_fault(path, out, offset, self.vocab_size):
            raise beyond

    def _file(self, shard: int, path: Path) -> FileIO:
        if shard not in self._open:
            if len(self._open) >= most_open_files():
                self._open.pop(next(iter(self._open))).close()
            # Checked at each opening, as the file may have been replaced since.
            tokens = self._first[shard + 1] - self._first[shard]
            if _identity(path) != self._seen[shard] or read_header(path) != tokens:
                raise damaged(path, "it was replaced while it was in use")
            self._open[shard] = FileIO(str(path))
        return self._open[shard]

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


def _identity(path: Path) -> tuple[int, int]:
    """Changes when a file is rewritten. Without its inode, which some network mounts invent."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def most_open_files() -> int:
    """Shards kept open at once: at most a quarter of the process's limit (`ulimit -n`)."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(MOST_OPEN_FILES, allowed // 4 if allowed > 0 else MOST_OPEN_FILES))
