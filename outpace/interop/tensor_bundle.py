"""TensorFlow's checkpoint format, read without TensorFlow: an index, which is a LevelDB table, and
raw little-endian data. Sources: tensorflow/core/util/tensor_bundle/tensor_bundle.h,
tensorflow/core/protobuf/tensor_bundle.proto, google/leveldb doc/table_format.md.

No declared size is trusted before it is compared with the files' sizes. Every block of the index
and every tensor has a CRC-32C, and each is checked. Every fault is a one-sentence ValueError.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES, TRAILER_BYTES = 48, 5
"""The table's footer has two block handles and the magic; a block's trailer its compression and
CRC."""
MOST_INDEX_BYTES = 16 * 1024 * 1024
"""GPT-2 XL's index has 30 kB."""
FLOAT = 1
"""DT_FLOAT of tensorflow/core/framework/types.proto: fp32."""


@dataclass(frozen=True)
class Entry:
    """A tensor's place in the files."""

    kind: int
    size: tuple[int, ...]
    shard: int
    offset: int
    n_bytes: int
    crc: int


class Bundle:
    """A checkpoint, by its prefix such as `model.ckpt`. Opening it reads only the index."""

    def __init__(self, prefix: Path) -> None:
        path = prefix.with_name(prefix.name + ".index")
        if path.stat().st_size > MOST_INDEX_BYTES:
            raise ValueError(f"{path.name} is too large for an index")
        rows = dict(_table(path.read_bytes()))
        header = dict(_fields(rows.pop(b"", b"")))
        shards = header.get(1)
        if not isinstance(shards, int) or not 1 <= shards <= 10_000 or header.get(2, 0) != 0:
            raise ValueError(f"{path.name} has no little-endian header")
        self.files = [
            prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{shards:05d}") for i in range(shards)
        ]
        sizes = [file.stat().st_size for file in self.files]
        self.entries: dict[str, Entry] = {}
        for key, row in rows.items():
            name, entry = key.decode("utf-8"), _entry(row)
            if entry.shard >= shards or entry.offset + entry.n_bytes > sizes[entry.shard]:
                raise ValueError(f"{name[:80]} lies outside the data file")
            self.entries[name] = entry

    def read(self, name: str) -> torch.Tensor:
        """Read one fp32 tensor and check its checksum."""
        entry = self.entries[name]
        if entry.kind != FLOAT or entry.n_bytes != 4 * math.prod(entry.size):
            raise ValueError(f"{name[:80]} is not {entry.size} in fp32")
        with open(self.files[entry.shard], "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.n_bytes)
        if len(data) != entry.n_bytes or masked_crc(data) != entry.crc:
            raise ValueError(f"{name[:80]} does not have the checksum that the index gives")
        return torch.from_numpy(np.frombuffer(data, "<f4").reshape(entry.size).copy())


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as LevelDB stores it (google/leveldb, util/crc32c.h)."""
    import google_crc32c

    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, by way of its block index."""
    if len(data) < FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("the index is not a TensorFlow table")
    footer = data[-FOOTER_BYTES:]
    at = _handle(footer, 0)[1]  # skip the handle of the filter block, which is empty
    for _, handle in _rows(_block(data, _handle(footer, at)[0])):
        yield from _rows(_block(data, _handle(handle, 0)[0]))


def _block(data: bytes, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    end = offset + size
    if end + TRAILER_BYTES > len(data) - FOOTER_BYTES:
        raise ValueError("a block of the index lies outside it")
    if data[end] != 0:
        raise ValueError("a block of the index is compressed, which TensorFlow never does")
    if masked_crc(data[offset : end + 1]) != struct.unpack_from("<I", data, end + 1)[0]:
        raise ValueError("a block of the index is damaged")
    return data[offset:end]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Rows of a block. Each key is stored as the length of the prefix shared with the key before
    it, and the rest."""
    if len(block) < 4 or (end := len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]) < 0:
        raise ValueError("a block of the index is cut")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + unshared + length > end:
            raise ValueError("a row of the index is cut")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _entry(row: bytes) -> Entry:
    """A BundleEntryProto."""
    size: list[int] = []
    fields: dict[int, int] = {}
    for number, value in _fields(row):
        if isinstance(value, int):
            fields[number] = value
        elif number == 2:  # TensorShapeProto: one Dim per dimension, whose size is field 1
            dims = [dict(_fields(dim)) for n, dim in _fields(value) if isinstance(dim, bytes)]
            size = [dim.get(1, 0) for dim in dims]  # type: ignore[misc]
        elif number == 7:
            raise ValueError("a tensor is stored in slices, unlike GPT-2's")
    if not all(isinstance(n, int) for n in size):
        raise ValueError("a tensor's shape is not a list of numbers")
    values = (fields.get(number, 0) for number in (1, 3, 4, 5, 6))
    kind, shard, offset, n_bytes, crc = values
    return Entry(kind, tuple(size), shard, offset, n_bytes, crc)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol-buffer message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("a record of the index is not a message")
        part = message[at : at + length]
        if len(part) < length:
            raise ValueError("a record of the index is cut")
        at += length
        yield number, part if kind == 2 else int.from_bytes(part, "little")


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """A block's (offset, size), and the position after it."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number in 7-bit groups, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise ValueError("the index is cut")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("the index has a number of more than 64 bits")
