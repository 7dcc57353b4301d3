"""Readers of shards and folders that share no code with outpace."""

import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shard_file import ShardFile
from outpace.data.shard_part import ShardPart
from outpace.data.shards import Dataset
from outpace.data.sources import Source, WholeSource
from outpace.tokenizer.bytes_ import BytesTokenizer
from outpace.tokenizer.gpt2 import Gpt2Tokenizer

END = {"gpt2": 50256, "bytes": 256}


class Texts(WholeSource):
    """A source of the given documents."""

    name = "texts"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def documents(self) -> Iterator[str]:
        yield from self.texts

    def describe(self) -> dict[str, Any]:
        return {}


def prepared(folder: Path, texts: list[str], workers: int = 2, **options: Any) -> Dataset:
    """Prepare `texts`, as bytes unless a tokenizer is named."""
    options = {"tokenizer": "bytes"} | options
    return prepare(Texts(texts), folder, PrepareOptions(**options), workers=workers)


def texts_in(source: Source) -> list[str]:
    """Every document of a source, as its chunks give them."""
    return [text for chunk in source.chunks() for batch in chunk.read() for text in batch.texts]


def notes_on(source: Source) -> dict[str, int]:
    """What is counted while a source is read."""
    notes: Counter[str] = Counter()
    for chunk in source.chunks():
        for batch in chunk.read():
            notes.update(batch.notes)
    return dict(notes)


def read_shard(path: Path) -> list[int]:
    """Tokens of a shard, by the format's definition."""
    data = path.read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[:2] == (20240520, 1)
    assert header[3:] == (0,) * 253
    tokens = list(struct.unpack(f"<{header[2]}H", data[1024:]))
    return tokens


def read_lengths(path: Path) -> list[int]:
    data = path.read_bytes()
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def read_documents(folder: Path, split: str, end: int) -> list[list[int]]:
    """Documents of a split, without their first token, cut by the lengths beside the shards."""
    documents = []
    for path in sorted(folder.glob(f"{split}_*.bin")):
        tokens, at = read_shard(path), 0
        for length in read_lengths(path.with_suffix(".len")):
            assert tokens[at] == end
            assert end not in tokens[at + 1 : at + length]
            documents.append(tokens[at + 1 : at + length])
            at += length
        assert at == len(tokens)
    return documents


def read_texts(folder: Path, split: str) -> list[str]:
    """Documents of a split prepared as bytes."""
    return [bytes(d).decode() for d in read_documents(folder, split, END["bytes"])]


def write_shard(
    folder: Path, split: str, number: int, tokens: list[int], lengths: list[int], end_document: int
) -> ShardFile:
    """A shard of documents with these lengths."""
    part = ShardPart(folder, split, number)
    part.append(np.array(tokens, np.uint16), np.array(lengths, np.uint32))
    return part.finish(end_document)


def write_dataset(folder: Path, shards: list[list[int]], vocab_size: int = 257) -> Path:
    """A dataset of training shards with the given tokens, each one document."""
    folder.mkdir(parents=True)
    entries = [
        write_shard(folder, "train", n, tokens, [len(tokens)], n + 1)
        for n, tokens in enumerate(shards)
    ]
    write_manifest(folder, entries, vocab_size)
    return folder


def write_manifest(folder: Path, shards: list[ShardFile], vocab_size: int) -> None:
    tokenizer = {257: BytesTokenizer, 50257: Gpt2Tokenizer}[vocab_size]
    manifest = {
        "format": 1,
        "name": "made",
        "tokenizer": {
            "name": tokenizer.name,
            "vocab_size": vocab_size,
            "vocab_sha256": tokenizer.vocab_sha256,
        },
        "unigram_entropy": 1.0,
        "tokens": {"train": sum(s.tokens for s in shards), "val": 0},
        "shards": [vars(s) for s in shards],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
