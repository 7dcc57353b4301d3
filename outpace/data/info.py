"""Facts about a prepared dataset, read from its shards: document lengths, samples, origin."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.data.shard_file import HEADER_BYTES, SPLITS, ShardFile
from outpace.data.shards import Dataset
from outpace.tokenizer import get_tokenizer

SAMPLE_TOKENS = 60


@dataclass(frozen=True)
class Lengths:
    """Tokens per document, end-of-text included: counts between powers of two, and quantiles."""

    bins: list[tuple[int, int, int]]
    """(from, below, documents)."""
    mean: float
    quantiles: dict[str, int]


def lengths_of(dataset: Dataset, split: str) -> Lengths | None:
    """None for a split without documents."""
    lengths = dataset.document_lengths(split)
    if not len(lengths):
        return None
    exponents = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    counts = np.bincount(exponents)
    bins = [(1 << n, 2 << n, int(count)) for n, count in enumerate(counts) if count]
    marks = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1.0}
    values = np.quantile(lengths, list(marks.values()), method="nearest")
    named = dict(zip(marks, values.astype(int).tolist(), strict=True))
    return Lengths(bins, float(lengths.mean()), named)


def samples_of(dataset: Dataset, split: str, count: int) -> list[tuple[str, str]]:
    """(place, beginning of the decoded text) of documents drawn evenly from a split, the same ones
    each time."""
    shards = [s for s in dataset.shards if s.split == split]
    if not (total := sum(s.documents for s in shards)):
        return []
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(total, min(count, total), replace=False)).tolist()
    tokenizer = get_tokenizer(dataset.tokenizer)
    found = []
    before = 0
    for shard in shards:
        mine = [n - before for n in chosen if before <= n < before + shard.documents]
        for number in mine:
            ids, length, more = _beginning(dataset, shard, int(number), tokenizer.end_of_text)
            text = tokenizer.decode(ids) + (" ..." if more else "")
            found.append((f"{shard.file}, document {number} ({length:,} tokens)", text))
        before += shard.documents
    return found


def _beginning(
    dataset: Dataset, shard: ShardFile, number: int, end_of_text: int
) -> tuple[list[int], int, bool]:
    """The first tokens of a document without its end-of-text (which the rest of a document cut by
    other programs' shards lacks), its length with it, and whether there are more tokens."""
    lengths = shard.document_lengths(dataset.folder)
    start, length = int(lengths[:number].sum()), int(lengths[number])
    with open(dataset.folder / shard.file, "rb") as f:
        f.seek(HEADER_BYTES + 2 * start)
        ids = np.fromfile(f, "<u2", min(length, SAMPLE_TOKENS + 1)).tolist()
    marked = int(ids[0] == end_of_text)
    return ids[marked : SAMPLE_TOKENS + marked], length, length - marked > SAMPLE_TOKENS


def summary(dataset: Dataset, samples: int) -> dict[str, Any]:
    """All facts, as JSON."""
    manifest = dataset.manifest
    found: dict[str, Any] = {
        key: manifest[key]
        for key in ("name", "tokenizer", "split", "documents", "tokens", "text_bytes",
                    "unigram_entropy", "from")
        if key in manifest
    }  # fmt: skip
    found["fingerprint"], found["shards"] = dataset.fingerprint, len(dataset.shards)
    found["bytes"] = sum(HEADER_BYTES + 2 * s.tokens + 4 * s.documents for s in dataset.shards)
    for split in SPLITS:
        lengths = lengths_of(dataset, split)
        found[f"{split}_lengths"] = None if lengths is None else vars(lengths)
        drawn = samples_of(dataset, split, samples)
        found[f"{split}_samples"] = [{"where": where, "text": text} for where, text in drawn]
    return found
