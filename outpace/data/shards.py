"""Token shards on disk, in the field's `.bin` format, and the manifest beside them.

    DIR/manifest.json            what the shards hold, from what, with a SHA-256 of each file
    DIR/train_000000.bin ...     256 int32 (magic 20240520, version 1, tokens), then uint16 tokens
    DIR/train_000000.len         uint32 tokens of each document in that shard
    DIR/val_000000.bin

All little-endian. A document begins with `<|endoftext|>`; a shard holds whole documents. llm.c and
modded-nanogpt read these files as they are (karpathy/llm.c, dev/data/data_common.py).
"""

import bisect
import hashlib
import json
import os
import re
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outpace.core.errors import DataError
from outpace.core.files import fsync_folder, sha256_file, sha256_json, storage_error

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
MOST_TOKENS = 2**31 - 1
"""Of one shard: the header's count is an int32."""
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
OPEN_FILES = 64
UInt16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class ShardFile:
    """One shard as the manifest lists it."""

    file: str
    split: str
    tokens: int
    documents: int
    sha256: str
    lengths_sha256: str
    end_document: int
    """One past the source index of the last document inside; where a restart goes on."""

    @classmethod
    def parse(cls, entry: Any) -> "ShardFile":
        """Check a manifest's entry; ValueError, TypeError or KeyError says what is wrong."""
        shard = cls(
            file=_typed(entry, "file", str),
            split=_typed(entry, "split", str),
            tokens=_typed(entry, "tokens", int),
            documents=_typed(entry, "documents", int),
            sha256=_typed(entry, "sha256", str),
            lengths_sha256=_typed(entry, "lengths_sha256", str),
            end_document=_typed(entry, "end_document", int),
        )
        if not re.fullmatch(r"\w[\w.-]*\.bin", shard.file):
            raise ValueError(f"shard name {shard.file!r} is not a plain NAME.bin in this folder")
        return shard

    @property
    def lengths(self) -> str:
        """Name of the file of document lengths."""
        return self.file.removesuffix(".bin") + ".len"

    def fault(self, folder: Path) -> DataError | None:
        """Read the whole shard; what is wrong with it, or None."""
        for name, sha256 in ((self.file, self.sha256), (self.lengths, self.lengths_sha256)):
            path = folder / name
            try:
                if sha256_file(path) != sha256:
                    return damaged(path, "its SHA-256 is not the one it was written with")
            except OSError as error:
                return damaged(path, error.strerror or str(error))
        return None


def _typed(entry: Any, key: str, kind: type) -> Any:
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}")
    return value


def write_shard(
    folder: Path, split: str, number: int, tokens: UInt16, lengths: list[int], end_document: int
) -> ShardFile:
    """Write one shard and its document lengths, each fsynced and renamed into place."""
    name = f"{split}_{number:06d}.bin"
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    payload = np.ascontiguousarray(tokens, "<u2").data.cast("B")
    digest = _write(folder / name, header.tobytes(), payload)
    lengths_digest = _write(
        (folder / name).with_suffix(".len"), np.asarray(lengths, "<u4").tobytes()
    )
    return ShardFile(name, split, len(tokens), len(lengths), digest, lengths_digest, end_document)


def _write(path: Path, *parts: bytes | memoryview) -> str:
    temporary = path.with_name(path.name + ".tmp")
    digest = hashlib.sha256()
    try:
        with open(temporary, "wb") as f:
            for part in parts:
                f.write(part)
                digest.update(part)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error
    return digest.hexdigest()


def read_header(path: Path) -> int:
    """Number of tokens in a shard; DataError if it is not one, or its size is not what it says."""
    try:
        with open(path, "rb") as f:
            data = f.read(HEADER_BYTES)
            size = os.fstat(f.fileno()).st_size
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    if len(data) < HEADER_BYTES:
        raise damaged(path, f"{len(data)} bytes are too few for a header of {HEADER_BYTES}")
    magic, version, tokens = np.frombuffer(data, "<i4")[:3].tolist()
    if (magic, version) != (MAGIC, VERSION):
        raise damaged(
            path, f"it begins with {magic}, {version} instead of magic {MAGIC}, version {VERSION}"
        )
    if size != HEADER_BYTES + 2 * tokens:
        raise damaged(path, f"{size} bytes cannot hold the {tokens} tokens its header promises")
    return int(tokens)


class TokenStream:
    """All shards of a split as one stream of tokens, read with plain reads: a file cut short under
    us is a clear error, where a memory map would kill the process. For one thread at a time."""

    def __init__(self, folder: Path, files: list[str], vocab_size: int) -> None:
        self.folder, self.files, self.vocab_size = folder, files, vocab_size
        counts = [read_header(folder / file) for file in files]
        self._first: list[int] = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        self._open: dict[int, FileIO] = {}

    def __len__(self) -> int:
        return self._first[-1]

    def read(self, start: int, out: UInt16) -> None:
        """Fill `out` with the tokens from `start` on, over shard borders."""
        assert start >= 0 and start + len(out) <= len(self), (start, len(out), len(self))
        done = 0
        while done < len(out):
            shard = bisect.bisect_right(self._first, start + done) - 1
            offset = start + done - self._first[shard]
            take = min(len(out) - done, self._first[shard + 1] - start - done)
            self._read(shard, offset, out[done : done + take])
            done += take

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
        if (highest := int(out.max())) >= self.vocab_size:
            raise DataError(
                "TOKEN-RANGE",
                f"{path}: token {offset + int(out.argmax())} is {highest}, beyond the vocabulary "
                f"of {self.vocab_size}",
                do="delete the dataset's folder and prepare it again",
            )

    def _file(self, shard: int, path: Path) -> FileIO:
        if shard not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            # Again at each opening: the file may have been replaced since.
            if read_header(path) != self._first[shard + 1] - self._first[shard]:
                raise damaged(path, "it was replaced while it was in use")
            self._open[shard] = FileIO(str(path))
        return self._open[shard]

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


@dataclass(frozen=True)
class Dataset:
    """A prepared folder: its manifest, checked against the shards' headers and sizes."""

    folder: Path
    manifest: dict[str, Any]
    shards: list[ShardFile]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def tokenizer(self) -> str:
        return str(self.manifest["tokenizer"]["name"])

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["tokenizer"]["vocab_size"])

    @property
    def unigram_entropy(self) -> float:
        """Entropy of the training tokens' frequencies in nats: the loss of a model that knows
        nothing but how common each token is."""
        return float(self.manifest["unigram_entropy"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over tokenizer and shard hashes: equal for equal tokens in equal order."""
        return sha256_json(
            {
                "tokenizer": self.manifest["tokenizer"]["vocab_sha256"],
                "shards": [(s.split, s.tokens, s.sha256) for s in self.shards],
            }
        )

    def tokens(self, split: str) -> int:
        return sum(s.tokens for s in self.shards if s.split == split)

    def stream(self, split: str) -> TokenStream:
        files = [s.file for s in self.shards if s.split == split]
        return TokenStream(self.folder, files, self.vocab_size)


def open_dataset(folder: Path) -> Dataset:
    """Read a prepared folder's manifest and check that its shards are there and whole in size."""
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(
            "NO-DATASET",
            f"{folder} is not a prepared dataset (no {MANIFEST})",
            do=f"outpace prepare files --input 'PATHS' --output {folder}",
        )
    manifest = read_json(path)
    try:
        dataset = Dataset(folder, manifest, [ShardFile.parse(s) for s in manifest["shards"]])
        _ = dataset.name, dataset.tokenizer, dataset.vocab_size, dataset.unigram_entropy
        _ = dataset.fingerprint
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise damaged(path, f"it cannot be used ({type(error).__name__}: {error})") from error
    if manifest.get("format") != MANIFEST_FORMAT:
        raise damaged(path, f"format {manifest.get('format')!r} is not {MANIFEST_FORMAT}")
    for shard in dataset.shards:
        if (found := read_header(folder / shard.file)) != shard.tokens:
            what = f"it holds {found} tokens, the manifest says {shard.tokens}"
            raise damaged(folder / shard.file, what)
    return dataset


def read_json(path: Path) -> Any:
    """Read a JSON file of a dataset; DataError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"it cannot be read ({type(error).__name__}: {error})") from error


def verify_dataset(dataset: Dataset) -> None:
    """Read every shard and compare its SHA-256; DataError names the first that differs."""
    for shard in dataset.shards:
        if fault := shard.fault(dataset.folder):
            raise fault


def damaged(path: Path, what: str) -> DataError:
    return DataError(
        "DATA-DAMAGED",
        f"{path}: {what}",
        do="delete the dataset's folder and prepare it again",
    )
