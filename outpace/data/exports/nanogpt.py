"""nanoGPT's `train.bin` and `val.bin` (karpathy/nanoGPT, data/openwebtext/prepare.py): raw uint16,
end-of-text after each document. For a dataset prepared with `--split nanogpt` they have the same
bytes as its script writes.
"""

from pathlib import Path

from outpace.data.exports import raw
from outpace.data.exports.stream import splits
from outpace.data.shards import Dataset


def export(dataset: Dataset, output: Path) -> list[Path]:
    """Write `train.bin` and `val.bin`."""
    paths = []
    for split in splits(dataset):
        raw.write(dataset, split, output / f"{split}.bin")
        paths.append(output / f"{split}.bin")
    return paths
