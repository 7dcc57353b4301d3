"""From pieces, in order, to shards; after each shard the journal says where a restart continues.

The output depends only on the sequence of documents, not on how they were cut into pieces or on
interruptions, so a restarted run writes the same bytes as one that was never stopped.
"""

import itertools
from pathlib import Path

import numpy as np

from outpace.core.errors import DataError
from outpace.data.arrays import Int64, UInt16, UInt64
from outpace.data.encode import KEPT
from outpace.data.journal import Growing, Journal
from outpace.data.ledger import Judged, Ledger
from outpace.data.shard_file import MOST_TOKENS, SPLITS
from outpace.data.shard_part import ShardPart
from outpace.tokenizer import Tokenizer


class ShardWriter:
    """Collects documents by split and finishes a shard whenever one is full."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, journal: Journal, ledger: Ledger, most: int
    ) -> None:
        self.folder, self.journal, self.ledger = folder, journal, ledger
        self.shard_tokens = most
        self._end_of_text = np.array(tokenizer.end_of_text, "<u2").tobytes()
        numbers = journal.numbers()
        self._parts = {s: ShardPart(folder, s, numbers[s], journal.parts[s]) for s in SPLITS}
        self.growing = {name: Growing(folder, name, size) for name, size in journal.sizes.items()}

    def add(self, judged: Judged, chunk: int, name: str) -> None:
        """Write the documents of a judged piece of a chunk, in parts between full shards."""
        sizes = judged.piece.lengths + 1
        if len(sizes) and (longest := int(sizes.max())) > MOST_TOKENS:
            n = int(sizes.argmax())
            raise DataError(
                "DOCUMENT-SIZE",
                f"document {judged.piece.first + n + 1} of {name} has {longest:,} tokens; a shard "
                f"holds at most {MOST_TOKENS:,}",
                do="cut it into several documents",
            )
        ends = np.cumsum(judged.piece.lengths)
        at = judged.start
        while at < judged.stop:
            full = {split: self._overflow(judged, split, at) for split in SPLITS}
            split = min(full, key=lambda s: full[s])
            until = min(full[split], judged.stop)
            self._write(judged, at, until, ends)
            self.growing["removed"].append(self.ledger.listed(judged, at, until, name))
            self.growing["sketches"].append(_sketches(judged, at, until))
            records = self.ledger.account(judged, at, until, name.rpartition("#")[0] or name)
            self.growing["documents"].append(records)
            at = until
            if full[split] < judged.stop:
                self._finish(split, chunk, judged.piece.first + at)

    def _overflow(self, judged: Judged, split: str, at: int) -> int:
        """The first document from `at` on that no longer fits into the split's shard."""
        mine = np.flatnonzero(judged.why[at : judged.stop] == KEPT) + at
        if judged.piece.cuts is None:
            mine = mine[judged.val[mine] == (split == "val")]
        filled = self._parts[split].mark.tokens
        total = filled + np.cumsum(self._sizes(judged, split)[mine])
        over = np.flatnonzero(total > self.shard_tokens)
        if len(over) and over[0] == 0 and not filled:
            over = over[1:]  # one document alone may be longer than a shard
        return int(mine[over[0]]) if len(over) else judged.stop

    def _sizes(self, judged: Judged, split: str) -> Int64:
        lengths, cuts = judged.piece.lengths, judged.piece.cuts
        if cuts is None:
            return lengths + 1
        return 1 + (cuts[:, 1] if split == "train" else lengths - cuts[:, 1])

    def _write(self, judged: Judged, start: int, stop: int, ends: Int64) -> None:
        if start == stop:
            return
        piece, keep = judged.piece, judged.why[start:stop] == KEPT
        lengths = piece.lengths[start:stop]
        ids = piece.ids[int(ends[start] - piece.lengths[start]) : int(ends[stop - 1])]
        if piece.cuts is not None:
            for n in (np.flatnonzero(keep) + start).tolist():
                mine = piece.ids[ends[n] - piece.lengths[n] : ends[n]]
                self._write_cut(mine, int(piece.cuts[n, 1]))
                self.ledger.cut = int(piece.cuts[n, 0])
            return
        for split in SPLITS:
            mine = keep & (judged.val[start:stop] == (split == "val"))
            if mine.all():
                chosen, sizes = ids, lengths
            elif mine.any():
                chosen, sizes = ids[np.repeat(mine, lengths)], lengths[mine]
            else:
                continue
            self._append(split, chosen, sizes)

    def _write_cut(self, ids: UInt16, cut: int) -> None:
        """Of a single document: its first part goes to training, its last to validation."""
        for split, part in (("train", ids[:cut]), ("val", ids[cut:])):
            if len(part):
                self._append(split, part, np.array([len(part)], np.int64))

    def _append(self, split: str, ids: UInt16, lengths: Int64) -> None:
        """Add documents to a shard, with an end-of-text before each."""
        data = ids.astype("<u2", copy=False).view(np.uint8).data
        ends = (2 * np.cumsum(lengths)).tolist()
        documents = (data[a:b] for a, b in itertools.pairwise([0, *ends]))
        tokens = np.frombuffer(self._end_of_text.join([b"", *documents]), "<u2")
        self._parts[split].append(tokens, (lengths + 1).astype(np.uint32))

    def _finish(self, split: str, chunk: int, document: int) -> None:
        """Give the shard its name and write the journal: a restart continues at this document."""
        self.journal.shards.append(self._parts[split].finish(self.ledger.documents))
        self._parts[split] = ShardPart(self.folder, split, self.journal.numbers()[split])
        self.save(chunk, document)

    def save(self, chunk: int, document: int) -> None:
        """Write the journal as of now."""
        self.journal.chunk, self.journal.document = chunk, document
        self.journal.parts = {split: part.save() for split, part in self._parts.items()}
        self.journal.sizes = {name: grown.save() for name, grown in self.growing.items()}
        self.journal.ledger = self.ledger.state()
        self.journal.write(self.folder)

    def finish(self, chunks: int) -> None:
        """The last shard of each split."""
        for split in SPLITS:
            if self._parts[split].mark.documents:
                self._finish(split, chunks, 0)

    def close(self) -> None:
        """Let go of all files, and of those that no restart needs."""
        for split, part in self._parts.items():
            part.close()
            if not self.journal.parts[split].documents:
                part.discard()
        for name, grown in self.growing.items():
            grown.close()
            if not self.journal.sizes[name]:
                grown.path.unlink(missing_ok=True)


def _sketches(judged: Judged, start: int, stop: int) -> bytes:
    """Sketches of the documents that are kept."""
    piece = judged.piece
    if piece.sketches is None or piece.sketch_sizes is None:
        return b""
    keep = np.zeros(len(piece), bool)
    keep[start:stop] = judged.why[start:stop] == KEPT
    kept: UInt64 = piece.sketches[np.repeat(keep, piece.sketch_sizes)]
    return kept.astype("<u8").tobytes()
