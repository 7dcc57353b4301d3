"""OLMo-core's token files: raw uint16 despite the suffix .npy (olmo_core/data/utils.py reads them
with a memory map and no header), with end-of-text after each document; beside each a .csv.gz with
one line `start,end` per document.
"""

import gzip
import io
from pathlib import Path

import numpy as np

from outpace.data.exports import raw
from outpace.data.exports.stream import new_file, splits
from outpace.data.shards import Dataset


def export(dataset: Dataset, output: Path) -> list[Path]:
    """Write `train.npy` and `val.npy`, each with its `.csv.gz`."""
    paths = []
    for split in splits(dataset):
        tokens = output / f"{split}.npy"
        lengths = raw.write(dataset, split, tokens)
        ends = np.cumsum(lengths)
        documents = output / f"{split}.csv.gz"
        with (
            new_file(documents) as out,
            gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed,
            io.TextIOWrapper(packed, newline="\n") as text,
        ):
            text.writelines(f"{a},{b}\n" for a, b in zip(ends - lengths, ends, strict=True))
        paths += [tokens, documents]
    return paths
