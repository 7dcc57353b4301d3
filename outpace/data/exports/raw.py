"""One raw token file per split, which nanoGPT, OLMo-core and, with an index beside it, Megatron
read.

Little-endian uint16, no header, end-of-text after each document. Our shards have it before each
document, so the file is their stream without the first token, plus one end-of-text.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from outpace.core.errors import DataError
from outpace.data import nanogpt_split
from outpace.data.arrays import Int64
from outpace.data.exports.stream import PIECE_TOKENS, end_of_text, new_file, shards
from outpace.data.shards import Dataset


def write(dataset: Dataset, split: str, path: Path) -> Int64:
    """Write a split's documents, and return the length of each in the order of the file: the
    shards' order, or nanoGPT's if the dataset has nanoGPT's split."""
    if dataset.manifest.get("options", {}).get("split") == "nanogpt":
        lengths = dataset.document_lengths(split)
        order = _nanogpt_order(dataset, split, len(lengths))
        with new_file(path) as out:
            for piece in _gathered(dataset, split, lengths, order):
                out.write(piece)
        return lengths[order]
    end = np.array([end_of_text(dataset)], "<u2")
    found: list[Int64] = []
    with new_file(path) as out:
        for _, tokens, lengths in shards(dataset, split):
            is_whole = tokens[0] == end[0]
            begin = int(is_whole and not found)
            for at in range(begin, len(tokens), PIECE_TOKENS):
                out.write(tokens[at : at + PIECE_TOKENS].data.cast("B"))
            if not is_whole and not found:  # it also ends in an end-of-text, the next one's
                lengths[0] += 1
            elif not is_whole:  # the rest of a document cut by another program
                found[-1][-1] += lengths[0]
                lengths = lengths[1:]
            if len(lengths):  # none if the rest continues in the next shard
                found.append(lengths)
        out.write(end.tobytes())
    return np.concatenate(found)


def _nanogpt_order(dataset: Dataset, split: str, documents: int) -> Int64:
    """The documents of nanoGPT's file, in its order, by their numbers in our split's stream."""
    total = int(dataset.manifest["documents"]["source"])
    train, val = nanogpt_split.order(total)
    is_val = np.zeros(total, bool)
    is_val[val] = True
    number = np.cumsum(is_val if split == "val" else ~is_val) - 1
    order: Int64 = number[val if split == "val" else train]
    if len(order) != documents:
        raise DataError(
            "EXPORT",
            f"{dataset.folder} has {documents:,} documents in {split}, nanoGPT's split of "
            f"{total:,} has {len(order):,}",
            do="prepare it again: the manifest does not belong to these shards",
        )
    return order


def _gathered(dataset: Dataset, split: str, lengths: Int64, order: Int64) -> Iterator[memoryview]:
    """The documents in another order, each with end-of-text after it instead of before it."""
    ends = np.cumsum(lengths)
    buffer = np.empty(max(PIECE_TOKENS, int(lengths.max())), "<u2")
    end, filled = end_of_text(dataset), 0
    stream = dataset.stream(split)
    try:
        for number in order.tolist():
            size = int(lengths[number])
            if filled + size > len(buffer):
                yield buffer[:filled].data.cast("B")
                filled = 0
            stream.read(int(ends[number]) - size + 1, buffer[filled : filled + size - 1])
            filled += size
            buffer[filled - 1] = end
        yield buffer[:filled].data.cast("B")
    finally:
        stream.close()
