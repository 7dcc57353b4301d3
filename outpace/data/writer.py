"""Documents' tokens to shards, restartable: after each shard the journal names it.

A restart takes the shards that the journal names and that are still whole, and goes on behind the
last document of each split. Everything here depends on the sequence of documents alone, so a
restarted run writes the same bytes as one that was never interrupted.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from outpace.core.errors import DataError
from outpace.core.files import replace_json
from outpace.core.log import warn
from outpace.data.scan import Scan
from outpace.data.shards import (
    HEADER_BYTES,
    MANIFEST,
    MOST_TOKENS,
    ShardFile,
    damaged,
    read_json,
    write_shard,
)
from outpace.tokenizer import Ids, Tokenizer

JOURNAL = ".prepare.json"
COUNTED_AT_ONCE = 1 << 20


def restart(output: Path, spec: str) -> list[ShardFile] | None:
    """Shards already written for this spec; None when the dataset is complete. DataError when the
    folder holds something else, which is then left as it is."""
    for path in (output / MANIFEST, output / JOURNAL):
        if path.exists() and _spec_of(path) != spec:
            raise DataError(
                "OTHER-DATASET",
                f"{output} holds a dataset prepared from other text or settings",
                do="choose another --output, or delete that folder first",
            )
    complete, begun = (output / MANIFEST).exists(), (output / JOURNAL).exists()
    if not complete and not begun and (foreign := sorted(output.glob("*.bin"))):
        raise DataError(
            "OTHER-DATASET",
            f"{output} holds shards of something else ({foreign[0].name})",
            do="choose another --output",
        )
    for rubbish in (*output.glob(f".{JOURNAL}.tmp-*"), *output.glob(f".{MANIFEST}.tmp-*")):
        rubbish.unlink()
    if complete:
        (output / JOURNAL).unlink(missing_ok=True)
        return None
    return _whole(output, _read_journal(output)) if begun else []


def _spec_of(path: Path) -> str | None:
    content = read_json(path)
    return content.get("spec") if isinstance(content, dict) else None


def _read_journal(folder: Path) -> list[ShardFile]:
    path = folder / JOURNAL
    try:
        return [ShardFile.parse(s) for s in read_json(path)["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"it cannot be used ({type(error).__name__}: {error})") from error


def _whole(folder: Path, shards: list[ShardFile]) -> list[ShardFile]:
    """The shards before the first damaged one of each split; the rest is written again."""
    whole: list[ShardFile] = []
    bad: set[str] = set()
    for shard in shards:
        if shard.split not in bad and (fault := shard.fault(folder)):
            warn(f"{fault.what}; writing it again")
            bad.add(shard.split)
        if shard.split not in bad:
            whole.append(shard)
    return whole


class ShardWriter:
    """Collects documents by split and writes a shard whenever one is full."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        scan: Scan,
        spec: str,
        shards: list[ShardFile],
        *,
        shard_tokens: int,
        limit_tokens: int | None,
    ) -> None:
        self.folder, self.spec, self.shards = folder, spec, shards
        self.shard_tokens, self.limit_tokens = shard_tokens, limit_tokens
        self.end_of_text = np.array([tokenizer.end_of_text], np.uint16)
        self.has_validation = scan.has_validation
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        """How often each id stands in the training shards."""
        self._pending: dict[str, list[Ids]] = {"train": [], "val": []}
        self._size = {"train": 0, "val": 0}
        self._next = {"train": 0, "val": 0}
        """Source index from which on a split's documents are still to come."""
        self._added = 0
        written = np.zeros(len(scan.keep), np.int64)
        for split in ("train", "val"):
            parts = [np.fromfile(folder / s.lengths, "<u4") for s in shards if s.split == split]
            lengths = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
            written[scan.documents(split)[: len(lengths)]] += lengths
            self._next[split] = max((s.end_document for s in shards if s.split == split), default=0)
        self._written_before = np.cumsum(written) - written
        for shard in shards:
            if shard.split == "train":
                self._count(np.fromfile(folder / shard.file, "<u2", offset=HEADER_BYTES))
        self._write_journal()

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.shards) + sum(self._size.values())

    def wants(self, index: int, split: str) -> bool:
        """Whether a document is to be written: not yet on disk, and not beyond the limit. The first
        validation document is taken wherever it stands, as there must be one."""
        return index >= self._next[split] and not self._beyond_limit(index, split)

    def full(self, index: int) -> bool:
        """Whether nothing from source index `index` on is wanted any more."""
        return self._beyond_limit(index, "train") and (
            not self.has_validation or self._beyond_limit(index, "val")
        )

    def _beyond_limit(self, index: int, split: str) -> bool:
        if self.limit_tokens is None:
            return False
        before = int(self._written_before[index]) + self._added
        return before >= self.limit_tokens and (split == "train" or self._next["val"] > 0)

    def add(self, index: int, split: str, ids: Ids) -> None:
        size = len(ids) + 1
        if size > MOST_TOKENS:
            raise DataError(
                "DOCUMENT-SIZE",
                f"document {index + 1} has {size:,} tokens; a shard holds at most {MOST_TOKENS:,}",
                do="cut it into several documents",
            )
        if self._size[split] + size > self.shard_tokens:
            self._flush(split)
        self._pending[split] += [self.end_of_text, ids]
        self._size[split] += size
        self._next[split] = index + 1
        self._added += size

    def finish(self) -> None:
        self._flush("train")
        self._flush("val")

    def unigram_entropy(self) -> float:
        """Entropy of the training tokens' frequencies, in nats a token."""
        p = self.counts[self.counts > 0] / self.counts.sum()
        return float(-(p * np.log(p)).sum())

    def _flush(self, split: str) -> None:
        if not self._pending[split]:
            return
        number = sum(s.split == split for s in self.shards)
        tokens = np.concatenate(self._pending[split])
        lengths = [1 + len(ids) for ids in self._pending[split][1::2]]
        self._pending[split], self._size[split] = [], 0
        self.shards.append(
            write_shard(self.folder, split, number, tokens, lengths, self._next[split])
        )
        self._write_journal()
        if split == "train":
            self._count(tokens)

    def _count(self, tokens: Ids) -> None:
        for at in range(0, len(tokens), COUNTED_AT_ONCE):  # bincount widens its input to 8 bytes
            part = tokens[at : at + COUNTED_AT_ONCE]
            self.counts += np.bincount(part, minlength=len(self.counts))

    def _write_journal(self) -> None:
        state = {"spec": self.spec, "shards": [asdict(s) for s in self.shards]}
        replace_json(self.folder / JOURNAL, state)
