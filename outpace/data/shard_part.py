"""A shard being filled: NAME.bin.tmp and NAME.len.tmp on disk, so that memory stays bounded
whatever the size of a shard, and an interrupted preparation continues in the middle of one.
"""

import contextlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from outpace.core.files import fsync_folder, sha256_file, storage_error
from outpace.data.arrays import UInt16
from outpace.data.shard_file import HEADER_BYTES, ShardFile, header


@dataclass
class Mark:
    """How far a shard was filled, with a checksum of its tokens up to there."""

    tokens: int = 0
    documents: int = 0
    crc32: int = 0

    @classmethod
    def parse(cls, entry: Any) -> "Mark":
        """Parse a journal's entry; ValueError, TypeError or KeyError says what is wrong."""
        values = [entry[key] for key in ("tokens", "documents", "crc32")]
        if not all(isinstance(v, int) and v >= 0 for v in values):
            raise ValueError(f"{entry!r} is not a mark")
        return cls(*values)


class ShardPart:
    """Appends whole documents; `finish` gives the shard its final name."""

    def __init__(self, folder: Path, split: str, number: int, mark: Mark | None = None) -> None:
        """Begin a shard, or continue it at `mark`, which `restore` has checked."""
        self.path = folder / f"{split}_{number:06d}.bin"
        self.split, self.mark = split, mark or Mark()
        self._summed = self.mark.tokens
        self._files: list[BinaryIO] = []

    @property
    def temporary(self) -> Path:
        return temporary(self.path)

    @property
    def _paths(self) -> list[Path]:
        return [temporary(self.path), temporary(self.path.with_suffix(".len"))]

    def append(self, tokens: UInt16, lengths: npt.NDArray[np.uint32]) -> None:
        """Add documents, each with its end-of-text. StorageError if the disk fails."""
        try:
            if not self._files:
                self._open()
            self._files[0].write(np.ascontiguousarray(tokens, "<u2").data.cast("B"))
            self._files[1].write(np.ascontiguousarray(lengths, "<u4").data.cast("B"))
        except OSError as error:
            raise self._failed(error) from error
        self.mark.tokens += len(tokens)
        self.mark.documents += len(lengths)

    def _open(self) -> None:
        for path, offset in zip(self._paths, _offsets(self.mark), strict=True):
            f = open(path, "r+b" if self.mark.documents else "wb")
            self._files.append(f)
            f.truncate(offset)
            f.seek(offset)

    def save(self) -> Mark:
        """Flush everything to the disk; return the mark to continue from."""
        try:
            self._sync()
            if self._summed < self.mark.tokens:
                self.mark.crc32 = _crc32(self.temporary, self._summed, self.mark.crc32)
                self._summed = self.mark.tokens
        except OSError as error:
            raise self._failed(error) from error
        return Mark(**vars(self.mark))

    def _flush(self) -> None:
        for f in self._files:
            f.flush()

    def _sync(self) -> None:
        self._flush()
        for f in self._files:
            os.fsync(f.fileno())

    def finish(self, end_document: int) -> ShardFile:
        """Write the header, hash, fsync, rename into place."""
        try:
            if not self._files:
                self._open()
            self._files[0].seek(0)
            self._files[0].write(header(self.mark.tokens))
            self._flush()
            with ThreadPoolExecutor(1) as pool:  # syncs while it is hashed
                synced = pool.submit(self._sync)
                sha256, lengths_sha256 = map(sha256_file, self._paths)
                synced.result()
            self.close()
            for path in reversed(self._paths):
                os.replace(path, path.with_suffix(""))
            fsync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error
        return ShardFile(
            self.path.name,
            self.split,
            self.mark.tokens,
            self.mark.documents,
            sha256,
            lengths_sha256,
            end_document,
        )

    def close(self) -> None:
        """Close the files; anything that can no longer be flushed is lost, and written again."""
        while self._files:
            with contextlib.suppress(OSError):
                self._files.pop().close()

    def discard(self) -> None:
        """Delete an unfinished shard that nobody will continue."""
        self.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> Exception:
        self.close()
        return storage_error(self.path, error)


def restore(folder: Path, split: str, number: int, mark: Mark) -> bool:
    """Bring a shard's temporary files back to their state at `mark`; False if that is impossible. A
    shard that got its final name after the mark is renamed back."""
    path = folder / f"{split}_{number:06d}.bin"
    if not mark.documents:
        return True
    for final, offset in zip((path, path.with_suffix(".len")), _offsets(mark), strict=True):
        if final.exists() and not temporary(final).exists():
            os.replace(final, temporary(final))
        if not temporary(final).is_file() or temporary(final).stat().st_size < offset:
            return False
        os.truncate(temporary(final), offset)
    lengths = np.fromfile(temporary(path.with_suffix(".len")), "<u4")
    return _crc32(temporary(path)) == mark.crc32 and int(lengths.sum()) == mark.tokens


def _crc32(path: Path, tokens: int = 0, crc32: int = 0) -> int:
    """Continue a checksum over a shard's tokens, from number `tokens` to the end."""
    with open(path, "rb") as f:
        f.seek(HEADER_BYTES + 2 * tokens)
        while piece := f.read(1 << 22):
            crc32 = zlib.crc32(piece, crc32)
    return crc32


def temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _offsets(mark: Mark) -> tuple[int, int]:
    return HEADER_BYTES + 2 * mark.tokens, 4 * mark.documents
