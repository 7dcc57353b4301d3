"""A prepared folder: token shards (shard_file.py) and the manifest beside them.

DIR/manifest.json            what the shards hold, from what, with a SHA-256 of each file
DIR/train_000000.bin ...     tokens
DIR/train_000000.len         tokens of each document in that shard
DIR/val_000000.bin
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core.errors import DataError
from outpace.core.files import sha256_json
from outpace.core.registry import nearest
from outpace.data.arrays import Int64
from outpace.data.shard_file import (
    HEADER_BYTES,
    SPLITS,
    ShardFile,
    damaged,
    read_header,
    read_json,
    token_fault,
)
from outpace.data.stream import TokenStream
from outpace.tokenizer import TOKENIZERS

MANIFEST, JOURNAL = "manifest.json", ".prepare.json"
"""The manifest is written last; until then the journal lists the finished shards."""
MANIFEST_FORMAT = 1
CHECKED_AT_ONCE = 1 << 22
"""Tokens of a shard held in memory while it is verified."""


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
        """Entropy of the training tokens' frequencies in nats: the loss of a model that knows only
        how common each token is."""
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

    def document_lengths(self, split: str) -> Int64:
        """Tokens of each document of a split, in the order of its stream."""
        lengths = [s.document_lengths(self.folder) for s in self.shards if s.split == split]
        return np.concatenate([np.zeros(0, np.int64), *lengths])

    def stream(self, split: str) -> TokenStream:
        files = [s.file for s in self.shards if s.split == split]
        return TokenStream(self.folder, files, self.vocab_size)


def open_dataset(folder: Path) -> Dataset:
    """Read a prepared folder's manifest; check that its shards exist and have the right size."""
    path = folder / MANIFEST
    if not path.exists() and (folder / JOURNAL).exists():
        raise DataError(
            "HALF-PREPARED",
            f"{folder} was not prepared to its end (there is no {MANIFEST} yet)",
            kept="the finished shards",
            do="run the same outpace prepare command again to continue",
        )
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
        if len({s.file for s in dataset.shards}) < len(dataset.shards):
            raise ValueError("it lists a shard twice")
        for split in SPLITS:
            if manifest["tokens"][split] != dataset.tokens(split):
                raise ValueError(f"it does not list all shards of {split}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise damaged(path, f"it cannot be used ({type(error).__name__}: {error})") from error
    if manifest.get("format") != MANIFEST_FORMAT:
        raise damaged(path, f"format {manifest.get('format')!r} is not {MANIFEST_FORMAT}")
    _check_tokenizer(dataset)
    for shard in dataset.shards:
        if (found := read_header(folder / shard.file)) != shard.tokens:
            what = f"it holds {found} tokens, the manifest says {shard.tokens}"
            raise damaged(folder / shard.file, what)
    return dataset


def _check_tokenizer(dataset: Dataset) -> None:
    """DataError unless the tokenizer here is the one that the text was prepared with."""
    name, path = dataset.tokenizer, dataset.folder / MANIFEST
    if name not in TOKENIZERS.names():
        raise damaged(path, f"no tokenizer {name!r}{nearest(name, TOKENIZERS.names())}")
    here, then = TOKENIZERS.load(name), dataset.manifest["tokenizer"]
    if (here.vocab_size, here.vocab_sha256) != (dataset.vocab_size, then["vocab_sha256"]):
        raise DataError(
            "TOKENIZER-CHANGED",
            f"{path}: it was prepared with another {name} vocabulary (SHA-256 "
            f"{then['vocab_sha256']}, {dataset.vocab_size} ids) than this outpace has",
            do="prepare the text again, into another --output",
        )


def verify_dataset(dataset: Dataset) -> None:
    """Read everything: the SHA-256 of each file, that the document lengths add up to the tokens,
    that each document begins with end-of-text and holds no other, and that no token is beyond the
    vocabulary. DataError names the first file that is wrong."""
    for shard in dataset.shards:
        if fault := shard.fault(dataset.folder) or _content_fault(dataset, shard):
            raise fault


def _content_fault(dataset: Dataset, shard: ShardFile) -> DataError | None:
    """What is wrong inside a shard whose hash is right: an error of the program that wrote it."""
    path, lengths_path = dataset.folder / shard.file, dataset.folder / shard.lengths
    if (found := read_header(path)) != shard.tokens:
        return damaged(path, f"it holds {found} tokens, the manifest says {shard.tokens}")
    lengths = np.fromfile(lengths_path, "<u4").astype(np.int64)
    held = len(lengths), int(lengths.sum())
    if held != (shard.documents, shard.tokens) or not lengths.all():
        what = "{:,} documents of {:,} tokens".format(*held)
        return damaged(lengths_path, f"{what}, the manifest says otherwise")
    starts = np.cumsum(lengths) - lengths
    end_of_text = TOKENIZERS.load(dataset.tokenizer).end_of_text
    with open(path, "rb") as f:
        f.seek(HEADER_BYTES)
        if dataset.manifest.get("cut_documents") and f.peek(2)[:2] != end_of_text.to_bytes(
            2, "little"
        ):
            starts = starts[1:]  # the shard begins with the rest of a document
        for at in range(0, shard.tokens, CHECKED_AT_ONCE):
            tokens = np.fromfile(f, "<u2", min(CHECKED_AT_ONCE, shard.tokens - at))
            if beyond := token_fault(path, tokens, at, dataset.vocab_size):
                return beyond
            first, last = np.searchsorted(starts, (at, at + len(tokens)))
            marked = np.flatnonzero(tokens == end_of_text) + at
            if len(odd := np.setxor1d(marked, starts[first:last])):
                what = f"at token {odd[0]} a document begins without end-of-text, or the reverse"
                return damaged(path, what)
    return None
