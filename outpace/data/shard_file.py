"""A token shard on disk, in the field's `.bin` format, and its file of document lengths.

    NAME.bin     256 int32 (magic 20240520, version 1, tokens), then uint16 tokens
    NAME.len     uint32 tokens of each document in that shard

All little-endian. A document begins with `<|endoftext|>`; a shard contains whole documents. llm.c
and modded-nanogpt read these files directly (karpathy/llm.c, dev/data/data_common.py).
"""

import errno
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core.errors import DataError
from outpace.core.files import sha256_file
from outpace.data.arrays import Int64, UInt16

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
MOST_TOKENS = 2**31 - 1
"""Maximum per shard: the header's count is an int32."""
SHARD_NAME = r"\w[\w.-]*\.bin"
SPLITS = ("train", "val")
DELETE = "delete that dataset (.bin, .len, .json)"
"""Part of a remedy. Names the files, because the folder may contain other things."""


@dataclass(frozen=True)
class ShardFile:
    """One shard, as listed in the manifest."""

    file: str
    split: str
    tokens: int
    documents: int
    sha256: str
    lengths_sha256: str
    end_document: int
    """One past the source index of the shard's last document, where a restart continues."""

    @classmethod
    def parse(cls, entry: Any) -> "ShardFile":
        """Parse a manifest's entry; ValueError, TypeError or KeyError says what is wrong."""
        shard = cls(
            file=_typed(entry, "file", str),
            split=_typed(entry, "split", str),
            tokens=_typed(entry, "tokens", int),
            documents=_typed(entry, "documents", int),
            sha256=_typed(entry, "sha256", str),
            lengths_sha256=_typed(entry, "lengths_sha256", str),
            end_document=_typed(entry, "end_document", int),
        )
        if not re.fullmatch(SHARD_NAME, shard.file):
            raise ValueError(f"shard name {shard.file!r} is not a plain NAME.bin in this folder")
        if shard.split not in SPLITS:
            raise ValueError(f"split {shard.split!r} is not one of {', '.join(SPLITS)}")
        return shard

    @property
    def lengths(self) -> str:
        """Name of the file of document lengths."""
        return self.file.removesuffix(".bin") + ".len"

    def document_lengths(self, folder: Path) -> Int64:
        """Tokens of each document, including end-of-text. DataError if the file is missing or does
        not add up to the shard's tokens."""
        path = folder / self.lengths
        try:
            check_regular(path)
            lengths = np.fromfile(path, "<u4").astype(np.int64)
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from error
        if lengths.sum() != self.tokens:
            raise damaged(path, f"its lengths do not add up to the {self.tokens:,} tokens")
        return lengths

    def fault(self, folder: Path) -> DataError | None:
        """Read the whole shard; return what is wrong with it, or None."""
        for name, sha256 in ((self.file, self.sha256), (self.lengths, self.lengths_sha256)):
            path = folder / name
            try:
                check_regular(path)
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


def header(tokens: int) -> bytes:
    """The first 1,024 bytes of a shard."""
    values = np.zeros(HEADER_BYTES // 4, "<i4")
    values[:3] = MAGIC, VERSION, tokens
    return values.tobytes()


def read_header(path: Path) -> int:
    """Number of tokens in a shard; DataError if it is not a shard, or if its size does not
    match."""
    try:
        check_regular(path)
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
        raise damaged(
            path,
            f"its size is {size} bytes, which does not match the {tokens} tokens in its header",
        )
    return int(tokens)


def token_fault(path: Path, tokens: UInt16, offset: int, vocab_size: int) -> DataError | None:
    """DataError if a token is beyond the vocabulary; `offset` is the position of the first
    token."""
    if (highest := int(tokens.max())) < vocab_size:
        return None
    return DataError(
        "TOKEN-RANGE",
        f"{path}: token {offset + int(tokens.argmax())} is {highest}, beyond the vocabulary "
        f"of {vocab_size}",
        do=f"{DELETE} and prepare it again",
    )


def read_json(path: Path) -> Any:
    """Read a JSON file of a dataset; DataError if it is damaged."""
    try:
        check_regular(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"it cannot be read ({type(error).__name__}: {error})") from error


def check_regular(path: Path) -> None:
    """OSError if it is not a regular file: a pipe or a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def damaged(path: Path, what: str) -> DataError:
    return DataError(
        "DATA-DAMAGED",
        f"{path}: {what}",
        do=f"restore it from a copy, or {DELETE} and prepare it again",
    )
