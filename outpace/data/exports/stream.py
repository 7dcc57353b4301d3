"""Shared by the exporters: a split's documents in order, and files that are whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from outpace.core.errors import DataError, UsageError
from outpace.core.files import storage_error, whole_file
from outpace.data.arrays import Int64, UInt16
from outpace.data.shard_file import HEADER_BYTES, SPLITS, ShardFile, damaged
from outpace.data.shards import Dataset
from outpace.tokenizer import get_tokenizer

PIECE_TOKENS = 1 << 22


def end_of_text(dataset: Dataset) -> int:
    """The id before each document."""
    return get_tokenizer(dataset.tokenizer).end_of_text


def splits(dataset: Dataset) -> list[str]:
    """The splits that are not empty."""
    found = [split for split in SPLITS if dataset.tokens(split)]
    if not found:
        raise DataError("EMPTY", f"{dataset.folder} has no tokens", do="prepare some text")
    return found


def shards(dataset: Dataset, split: str) -> Iterator[tuple[ShardFile, UInt16, Int64]]:
    """Each shard of a split: its tokens, and the lengths of its documents."""
    for shard in dataset.shards:
        if shard.split == split:
            try:
                tokens = np.fromfile(dataset.folder / shard.file, "<u2", offset=HEADER_BYTES)
            except OSError as error:
                path = dataset.folder / shard.file
                raise damaged(path, error.strerror or str(error)) from error
            yield shard, tokens, shard.document_lengths(dataset.folder)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing, which gets its name once it is whole. UsageError if it
    exists."""
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    with whole_file(path, path.with_name(path.name + ".tmp")) as f:
        yield f


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it if the file system has no hard links."""
    check_new(target)
    if not source.exists():
        raise damaged(source, "it is missing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source.resolve(), target)
    except OSError:
        with new_file(target) as out, open(source, "rb") as f:
            while piece := f.read(1 << 20):
                out.write(piece)


def check_new(path: Path) -> None:
    """UsageError if it exists."""
    if path.exists():
        raise UsageError(
            "OUTPUT-EXISTS", f"{path} exists", do="choose another folder, or delete it first"
        )
