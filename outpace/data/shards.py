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
MANIFEST = "manifest.json"
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


def write_shard(
    folder: Path, split: str, number: int, tokens: UInt16, lengths: list[int], end_document: int
) -> ShardFile:
    """Write one shard and its document lengths, each fsynced and renamed into place."""
    name = f"{split}_{number:06d}.bin"
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    payload = tokens.astype("<u2", copy=False)
    digest = _write(folder / name, header.tobytes(), payload.tobytes())
    lengths_digest = _write(
        (folder / name).with_suffix(".len"), np.asarray(lengths, "<u4").tobytes()
    )
    return ShardFile(name, split, len(tokens), len(lengths), digest, lengths_digest, end_document)


def _write(path: Path, *parts: bytes) -> str:
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
            header = np.frombuffer(f.read(HEADER_BYTES), "<i4")
        size = path.stat().st_size
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if len(header) < 256:
        raise _damaged(path, "it is shorter than its header")
    if int(header[0]) != MAGIC or int(header[1]) != VERSION:
        raise _damaged(path, f"it does not begin with magic {MAGIC}, version {VERSION}")
    tokens = int(header[2])
    if size != HEADER_BYTES + 2 * tokens:
        raise _damaged(path, f"{size} bytes cannot hold the {tokens} tokens its header promises")
    return tokens


class TokenStream:
    """All shards of a split as one stream of tokens, read with plain reads: a file cut short under
    us is a clear error, where a memory map would kill the process."""

    def __init__(self, folder: Path, files: list[str], vocab_size: int) -> None:
        self.folder, self.files, self.vocab_size = folder, files, vocab_size
        counts = [read_header(folder / file) for file in files]
        self._first = [0, *np.cumsum(counts).tolist()]
        self._open: dict[int, FileIO] = {}

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, start: int, out: UInt16) -> None:
        """Fill `out` with the tokens from `start` on, over shard borders."""
        done = 0
        while done < len(out):
            shard = bisect.bisect_right(self._first, start + done) - 1
            offset = start + done - self._first[shard]
            take = min(len(out) - done, self._first[shard + 1] - start - done)
            self._read(shard, offset, out[done : done + take])
            done += take
        if len(out) and int(out.max()) >= self.vocab_size:
            at = start + int(out.argmax())
            raise DataError(
                "TOKEN-RANGE",
                f"{self.folder}: token {at} of the stream is {int(out.max())}, beyond the "
                f"vocabulary of {self.vocab_size}",
                do="prepare the dataset again",
            )

    def _read(self, shard: int, offset: int, out: UInt16) -> None:
        path = self.folder / self.files[shard]
        try:
            if shard not in self._open:
                if len(self._open) >= 64:
                    self._open.pop(next(iter(self._open))).close()
                self._open[shard] = FileIO(str(path))
            file = self._open[shard]
            file.seek(HEADER_BYTES + 2 * offset)
            got = file.readinto(out.view(np.uint8))
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        if got != out.nbytes:
            raise _damaged(path, "it became shorter while it was read")

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


@dataclass(frozen=True)
class Dataset:
    """A prepared folder: its manifest, checked against the shards' headers and sizes."""

    folder: Path
    manifest: dict[str, Any]

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
                "shards": [(s["split"], s["tokens"], s["sha256"]) for s in self.manifest["shards"]],
            }
        )

    def tokens(self, split: str) -> int:
        return sum(s["tokens"] for s in self.manifest["shards"] if s["split"] == split)

    def stream(self, split: str) -> TokenStream:
        files = [s["file"] for s in self.manifest["shards"] if s["split"] == split]
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
    try:
        manifest = json.loads(path.read_text())
        dataset = Dataset(folder, manifest)
        shards = [(str(s["file"]), int(s["tokens"]), str(s["split"])) for s in manifest["shards"]]
        _ = dataset.name, dataset.tokenizer, dataset.vocab_size, dataset.unigram_entropy
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"it cannot be read ({type(error).__name__}: {error})") from error
    if manifest.get("format") != MANIFEST_FORMAT:
        raise _damaged(path, f"format {manifest.get('format')!r} is not {MANIFEST_FORMAT}")
    for file, tokens, _split in shards:
        if Path(file).name != file:
            raise _damaged(path, f"shard name {file!r} leaves the folder")
        if (found := read_header(folder / file)) != tokens:
            raise _damaged(folder / file, f"it holds {found} tokens, the manifest says {tokens}")
    return dataset


MANIFEST_FORMAT = 1


def verify_dataset(dataset: Dataset) -> None:
    """Read every shard and compare its SHA-256; DataError names the first that differs."""
    for shard in dataset.manifest["shards"]:
        path = dataset.folder / shard["file"]
        lengths = path.with_suffix(".len")
        if sha256_file(path) != shard["sha256"]:
            raise _damaged(path, "its SHA-256 is not the manifest's")
        if not lengths.exists() or sha256_file(lengths) != shard["lengths_sha256"]:
            raise _damaged(lengths, "its SHA-256 is not the manifest's")


def _damaged(path: Path, what: str) -> DataError:
    return DataError("DATA-DAMAGED", f"{path}: {what}", do="prepare the dataset again")
