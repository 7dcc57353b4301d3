"""Checking the hashes of a dataset's shards while training reads them."""

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from outpace.core.errors import DataError
from outpace.data.shard_file import ShardFile, damaged
from outpace.data.shards import Dataset

PIECE = 1 << 20


class BackgroundCheck:
    """Hashes the shards of a split on a thread, from now on; `poll` raises once one is found
    damaged.

    Sizes and headers were checked when the dataset was opened. Only the hash shows a flipped bit,
    and hashing all shards first would delay training. hashlib and the file reads release the GIL.
    """

    def __init__(self, datasets: Sequence[Dataset], split: str = "train") -> None:
        self._shards = [(d.folder, s) for d in datasets for s in d.shards if s.split == split]
        self._fault: DataError | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._check, name="outpace-data-check", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether every shard was read, or a damaged one found."""
        return not self._thread.is_alive()

    def poll(self) -> None:
        """Raise the DataError that names the damaged shard, if one was found."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()
        self._thread.join()

    def _check(self) -> None:
        for folder, shard in self._shards:
            self._fault = self._fault_of(folder, shard)
            if self._fault is not None or self._closed.is_set():
                return

    def _fault_of(self, folder: Path, shard: ShardFile) -> DataError | None:
        path = folder / shard.file
        try:
            found = self._sha256(path)
        except OSError as error:
            return damaged(path, error.strerror or str(error))
        if found is not None and found != shard.sha256:
            return damaged(path, "its SHA-256 is not the one it was written with")
        return None

    def _sha256(self, path: Path) -> str | None:
        """None if closed before the end."""
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as f:
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while piece := f.read(PIECE):
                if self._closed.is_set():
                    return None
                digest.update(piece)
        return digest.hexdigest()
