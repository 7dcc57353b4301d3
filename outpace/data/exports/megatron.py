"""Megatron-LM's indexed dataset: `train.bin`, raw uint16 with end-of-text after each document, and
`train.idx` (megatron-core 0.16, core/datasets/indexed_dataset.py), all little-endian:

    9 bytes "MMIDIDX" 0 0, uint64 version 1, uint8 type (8 is uint16), uint64 sequences,
    uint64 documents + 1, int32 tokens of each sequence, int64 byte offset of each,
    int64 number of the first sequence of each document, and one past the last

A document is one sequence.
"""

import struct
from pathlib import Path

import numpy as np

from outpace.data.arrays import Int64
from outpace.data.exports import raw
from outpace.data.exports.stream import new_file, splits
from outpace.data.shards import Dataset

MAGIC = b"MMIDIDX\x00\x00"
UINT16 = 8


def export(dataset: Dataset, output: Path) -> list[Path]:
    """Write `train.bin`, `train.idx`, `val.bin` and `val.idx`; Megatron's `--data-path` takes them
    without the suffix."""
    paths = []
    for split in splits(dataset):
        tokens = output / f"{split}.bin"
        write_index(output / f"{split}.idx", raw.write(dataset, split, tokens))
        paths += [tokens, output / f"{split}.idx"]
    return paths


def write_index(path: Path, lengths: Int64) -> None:
    """Write the index of documents with these lengths in tokens."""
    count = len(lengths)
    with new_file(path) as out:
        out.write(MAGIC + struct.pack("<QBQQ", 1, UINT16, count, count + 1))
        out.write(lengths.astype("<i4").tobytes())
        out.write(((np.cumsum(lengths) - lengths) * 2).astype("<i8").tobytes())
        out.write(np.arange(count + 1, dtype="<i8").tobytes())
