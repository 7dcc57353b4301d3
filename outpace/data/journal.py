"""`.prepare.json`, from which an interrupted preparation continues, and the growing files beside.

It is replaced whenever a shard is finished, and records the valid length of everything else:
half-filled shards, hashes of the documents so far, the list of what was left out. Anything beyond
that length was written later and is cut off.
"""

import contextlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from outpace.core.files import replace_json, storage_error
from outpace.data.shard_file import SPLITS, ShardFile, damaged, read_json
from outpace.data.shard_part import Mark
from outpace.data.shards import JOURNAL

GROWING = {
    "documents": ".documents.tmp",
    "sketches": ".sketches.tmp",
    "removed": "removed.jsonl.tmp",
}


@dataclass
class Journal:
    """The state at the last finished shard."""

    spec: str
    settings: dict[str, Any]
    """The settings behind `spec`, as the manifest will record them."""
    stamps: str = ""
    shards: list[ShardFile] = field(default_factory=list)
    chunk: int = 0
    document: int = 0
    """What comes next: number of the chunk, number of the document in it."""
    parts: dict[str, Mark] = field(default_factory=lambda: {split: Mark() for split in SPLITS})
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GROWING, 0))
    """Bytes of the growing files that count."""
    ledger: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] | None = None
    """How to split if the fraction alone would leave one side empty."""

    def write(self, folder: Path) -> None:
        replace_json(folder / JOURNAL, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Journal":
        """DataError when it is damaged."""
        path = folder / JOURNAL
        content = read_json(path)
        try:
            journal = cls(
                spec=content["spec"],
                settings=dict(content.get("settings", {})),
                stamps=content["stamps"],
                shards=[ShardFile.parse(s) for s in content["shards"]],
                chunk=int(content["chunk"]),
                document=int(content["document"]),
                parts={split: Mark.parse(content["parts"][split]) for split in SPLITS},
                sizes={name: int(content["sizes"][name]) for name in GROWING},
                ledger=dict(content["ledger"]),
                decision=content["decision"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path, f"it cannot be used ({type(error).__name__}: {error})") from error
        return journal

    def numbers(self) -> dict[str, int]:
        """How many shards of each split are finished."""
        return {split: sum(s.split == split for s in self.shards) for split in SPLITS}


class Growing:
    """A file beside the shards that is appended to, and truncated when a restart continues it."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self.path, self.size = folder / GROWING[name], size
        self._file: BinaryIO | None = None

    def whole(self) -> bool:
        """Whether the file still has everything up to the recorded size."""
        return not self.size or (self.path.is_file() and self.path.stat().st_size >= self.size)

    def append(self, data: bytes) -> None:
        if not data:
            return
        try:
            if self._file is None:
                self._file = open(self.path, "r+b" if self.size else "wb")
                self._file.truncate(self.size)
                self._file.seek(self.size)
            self._file.write(data)
        except OSError as error:
            raise storage_error(self.path, error) from error
        self.size += len(data)

    def read(self) -> bytes:
        """Its valid part."""
        if not self.size:
            return b""
        if self._file is not None:
            self._file.flush()
        with open(self.path, "rb") as f:
            return f.read(self.size)

    def save(self) -> int:
        """Flush it to the disk; returns its size."""
        try:
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(self.path, error) from error
        return self.size

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
