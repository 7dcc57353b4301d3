"""A Hugging Face dataset of token ids: parquet files with a column `input_ids`, one row per
document, and a README.md that names the splits, so that `datasets.load_dataset(FOLDER)` finds them.

A row is a document as in the shards, and begins with end-of-text, except where another program's
shards cut documents: the joined rows are the training stream.
"""

from pathlib import Path

import numpy as np

from outpace.core.files import replace_file
from outpace.data.exports.stream import check_new, new_file, shards, splits
from outpace.data.shards import Dataset

NAMES = {"train": "train", "val": "validation"}
ROW_GROUP_TOKENS = 4_000_000
CARD = """---
configs:
- config_name: default
  data_files:
{files}---

Token ids of `{name}`: {tokens}. Tokenizer: {tokenizer}, {vocabulary} ids. A row is a document and
begins with the end-of-text token{cut}; the rows joined are the training stream.
"""
CUT = ", but where a shard begins in the middle of one"


def export(dataset: Dataset, output: Path) -> list[Path]:
    """Write `data/SPLIT-NNNNN-of-NNNNN.parquet`, one per shard, and `README.md`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_new(output / "README.md")
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    paths = []
    for split in splits(dataset):
        total = sum(s.split == split for s in dataset.shards)
        for number, (_, tokens, lengths) in enumerate(shards(dataset, split)):
            path = output / "data" / f"{NAMES[split]}-{number:05d}-of-{total:05d}.parquet"
            ends = np.concatenate([[0], np.cumsum(lengths)])
            with (
                new_file(path) as out,
                pq.ParquetWriter(out, schema, compression="zstd") as writer,
            ):
                first = 0
                while first < len(lengths):
                    last = int(np.searchsorted(ends, ends[first] + ROW_GROUP_TOKENS, "right")) - 1
                    last = max(last, first + 1)
                    values = tokens[ends[first] : ends[last]].astype(np.int32)
                    offsets = (ends[first : last + 1] - ends[first]).astype(np.int32)
                    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
                    writer.write_table(pa.table([column], schema=schema))
                    first = last
            paths.append(path)
    card = CARD.format(
        files="".join(
            f"  - split: {NAMES[s]}\n    path: data/{NAMES[s]}-*\n" for s in splits(dataset)
        ),
        name=dataset.name,
        tokens=", ".join(f"{dataset.tokens(s):,} in {NAMES[s]}" for s in splits(dataset)),
        tokenizer=dataset.tokenizer,
        vocabulary=f"{dataset.vocab_size:,}",
        cut=CUT if dataset.manifest.get("cut_documents") else "",
    )
    replace_file(output / "README.md", card)
    return [*paths, output / "README.md"]
