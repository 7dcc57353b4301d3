"""llm.c's and modded-nanogpt's shards: our own files, under the names that their globs expect
(`NAME_train_*.bin`, `NAME_val_*.bin`). Hard links where the file system has them, so they take no
space.
"""

from pathlib import Path

from outpace.core.errors import DataError
from outpace.data.exports.stream import link
from outpace.data.shard_file import HEADER_BYTES
from outpace.data.shards import Dataset

MOST_BYTES = 2**31
"""llm.c casts a shard's byte offset to an int (llmc/dataloader.h)."""


def export(dataset: Dataset, output: Path) -> list[Path]:
    """Link every shard into `output`, numbered from 0 in each split."""
    for shard in dataset.shards:
        if HEADER_BYTES + 2 * shard.tokens >= MOST_BYTES:
            raise DataError(
                "SHARD-SIZE",
                f"{dataset.folder / shard.file} has {shard.tokens:,} tokens; llm.c reads shards of "
                f"less than 2 GiB",
                do="prepare with a smaller --shard_tokens (default 100,000,000)",
            )
    paths, count = [], {"train": 0, "val": 0}
    for shard in dataset.shards:
        path = output / f"{dataset.name}_{shard.split}_{count[shard.split]:06d}.bin"
        link(dataset.folder / shard.file, path)
        count[shard.split] += 1
        paths.append(path)
    return paths
