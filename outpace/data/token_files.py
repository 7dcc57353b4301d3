"""Token files written by other programs, recognised by their content, read in pieces.

    llm.c, modded-nanogpt .bin    256 int32 (20240520, 1, tokens), then uint16
    nanoGPT .bin, OLMo-core .npy  raw uint16 (no GPT-2 token file can begin with llm.c's magic)
    build-nanogpt .npy            NumPy's own format, any unsigned or signed integer type
    Megatron .bin                 raw, with the type and the documents in NAME.idx beside it

Documents are separated by end-of-text tokens, whether these come before or after each.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outpace.core.errors import DataError
from outpace.data.arrays import Int64, UInt16
from outpace.data.shard_file import HEADER_BYTES, MAGIC, VERSION, check_regular

LLAMA_MAGIC = 20240801
NPY_MAGIC = b"\x93NUMPY"
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""DType of megatron-core 0.16, core/datasets/indexed_dataset.py."""
PIECE_TOKENS = 1 << 22
MOST_DOCUMENT_TOKENS = 1 << 25
SUFFIXES = (".bin", ".npy")


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens: where they begin, their type and number."""

    path: Path
    format: str
    tokens: int
    offset: int
    """Bytes before the first token."""
    dtype: str

    def pieces(self, vocab_size: int) -> Iterator[UInt16]:
        """The tokens, a few million at a time. DataError for a token that is not below
        `vocab_size`, or if the file is cut short meanwhile."""
        kind = np.dtype(self.dtype)
        with open(self.path, "rb") as f:
            f.seek(self.offset)
            for at in range(0, self.tokens, PIECE_TOKENS):
                size = min(PIECE_TOKENS, self.tokens - at)
                data = np.frombuffer(f.read(kind.itemsize * size), kind)
                if len(data) < size:
                    raise token_file_fault(self.path, "it became shorter while it was read")
                if int(data.max()) >= vocab_size or int(data.min()) < 0:
                    bad = int(((data >= vocab_size) | (data < 0)).argmax())
                    raise DataError(
                        "TOKEN-RANGE",
                        f"{self.path}: token {at + bad} is {data[bad]}, beyond the vocabulary of "
                        f"{vocab_size}: the file was made with another tokenizer",
                        do="prepare its text instead, or leave the file out",
                    )
                yield data.astype(np.uint16, copy=False)


def recognise(path: Path) -> TokenFile:
    """Recognise a token file; DataError if it is not one, or does not have the length it
    declares."""
    try:
        check_regular(path)
        with open(path, "rb") as f:
            head = f.read(HEADER_BYTES)
            size = os.fstat(f.fileno()).st_size
    except OSError as error:
        raise token_file_fault(path, error.strerror or str(error)) from error
    if size == 0:
        raise token_file_fault(path, "it is empty")
    if head.startswith(NPY_MAGIC):
        return _npy(path, size)
    magic, version, tokens = struct.unpack("<3i", head[:12].ljust(12, b"\0"))
    if magic == LLAMA_MAGIC:
        raise DataError(
            "TOKEN-RANGE",
            f"{path} has tokens of llama-3 (magic {LLAMA_MAGIC}), not of GPT-2",
            do="prepare its text instead",
        )
    if magic == MAGIC:
        if version != VERSION or size != HEADER_BYTES + 2 * tokens:
            raise token_file_fault(
                path, f"version {version}, {size} bytes, but its header declares {tokens} tokens"
            )
        return TokenFile(path, "llm.c", tokens, HEADER_BYTES, "<u2")
    if (index := path.with_suffix(".idx")).exists():
        return _megatron(path, size, index)
    if size % 2:
        raise token_file_fault(path, f"{size} bytes are not a whole number of uint16")
    return TokenFile(path, "raw uint16", size // 2, 0, "<u2")


def _npy(path: Path, size: int) -> TokenFile:
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise token_file_fault(path, f"not a whole NumPy file ({error})") from error
    if data.ndim != 1 or data.dtype.kind not in "ui" or not isinstance(data, np.memmap):
        what = f"an array of {data.dtype} with shape {data.shape}"
        raise token_file_fault(path, f"{what}, not a list of token ids")
    if data.offset + data.nbytes != size:
        raise token_file_fault(path, f"{size} bytes, but its header declares {len(data)} tokens")
    return TokenFile(path, "numpy", len(data), data.offset, data.dtype.str)


def _megatron(path: Path, size: int, index: Path) -> TokenFile:
    """The .idx declares the type; its arrays begin at byte 34."""
    with open(index, "rb") as f:
        head = f.read(34)
        length = os.fstat(f.fileno()).st_size
    if len(head) < 34 or head[:9] != MEGATRON_MAGIC:
        raise token_file_fault(index, "it is not Megatron's index")
    version, code, sequences, documents = struct.unpack("<QBQQ", head[9:])
    if version != 1 or code not in MEGATRON_TYPES:
        raise token_file_fault(index, f"version {version}, type {code} is not known")
    kind = np.dtype(MEGATRON_TYPES[code])
    if length < 34 + 12 * sequences + 8 * documents:
        raise token_file_fault(index, f"{length} bytes are too few for {sequences} sequences")
    lengths = np.fromfile(index, "<i4", sequences, offset=34)
    if (tokens := int(lengths.sum(dtype=np.int64))) * kind.itemsize != size:
        raise token_file_fault(path, f"{size} bytes are not the {tokens} tokens of {index.name}")
    return TokenFile(path, "Megatron", tokens, 0, kind.str)


def documents(file: TokenFile, end_of_text: int, vocab_size: int) -> Iterator[tuple[UInt16, Int64]]:
    """The documents of a file, some at a time: their tokens, joined, without end-of-text, and the
    length of each. Empty ones are left out; the rest of a piece after its last end-of-text waits
    for the next."""
    rest: list[UInt16] = []
    for piece in file.pieces(vocab_size):
        ends = np.flatnonzero(piece == end_of_text)
        if not len(ends):
            rest.append(piece)
            if sum(map(len, rest)) > MOST_DOCUMENT_TOKENS:
                raise no_end_of_text(file.path, MOST_DOCUMENT_TOKENS, end_of_text)
            continue
        last = int(ends[-1]) + 1
        yield _cut(np.concatenate([*rest, piece[:last]]), end_of_text)
        rest = [piece[last:]]
    if sum(map(len, rest)):
        yield _cut(np.concatenate(rest), end_of_text)


def _cut(tokens: UInt16, end_of_text: int) -> tuple[UInt16, Int64]:
    is_end = tokens == end_of_text
    borders = np.concatenate([[-1], np.flatnonzero(is_end), [len(tokens)]])
    lengths = np.diff(borders) - 1
    return tokens[~is_end], lengths[lengths > 0]


def no_end_of_text(path: Path, tokens: int, end_of_text: int) -> DataError:
    return DataError(
        "DOCUMENT-SIZE",
        f"{path}: {tokens:,} tokens without an end-of-text ({end_of_text}): the file was made with "
        "another tokenizer",
        do="prepare its text instead, or leave the file out",
    )


def token_file_fault(path: Path, what: str) -> DataError:
    return DataError("BAD-INPUT", f"{path}: {what}", do="fetch or write it again, or leave it out")
