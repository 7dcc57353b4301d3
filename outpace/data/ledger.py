"""Decisions that need the documents in order: which are copies, on which side of the split each
falls, where a limit is reached; and the counts.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from outpace.data.arrays import Bools, Int64, UInt8
from outpace.data.encode import (
    CONTAMINATED,
    COPY,
    DIGEST,
    EMPTY,
    FILTERED,
    KEPT,
    NEAR,
    REASONS,
    Piece,
)
from outpace.data.seen import Seen
from outpace.data.sketch import THRESHOLD, NearDuplicates

RECORD = np.dtype([("digest", "<u8"), ("why", "u1")])
"""A document in `.documents.tmp`."""
MOST_LABELS = 2000
"""How many places of origin are counted; beyond twice as many the rarest are dropped."""


@dataclass(frozen=True)
class Rules:
    """How documents are judged."""

    val_fraction: float = 0.01
    limit_tokens: int | None = None
    limit_documents: int | None = None
    held_out: Int64 | None = None
    """Sorted numbers of the validation documents, where these are fixed; copies are then kept."""
    decision: dict[str, Any] | None = None


@dataclass
class Judged:
    """The documents `start` to `stop` of a piece, with the decisions on them."""

    piece: Piece
    start: int
    stop: int
    why: UInt8
    """For each document of the piece why it is left out, or 0."""
    val: Bools
    shares: dict[int, float] = field(default_factory=dict)
    """For near duplicates: the share of their sketch that was seen before."""


@dataclass
class Ledger:
    """The counts so far, which the journal saves, and the sets behind them."""

    rules: Rules
    documents: int = 0
    text_bytes: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    tokens: int = 0
    lowest: int = 2**64 - 1
    highest: int = 0
    candidates: int = 0
    """Documents that are kept, or would be without a limit; `lowest` and `highest` are the extremes
    of their hashes."""
    notes: dict[str, int] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    """Documents and tokens kept of each place."""
    cut: int | None = None
    """Character at which the only document was cut."""
    seen: Seen = field(default_factory=Seen)
    near: NearDuplicates = field(default_factory=NearDuplicates)

    SAVED = ("documents", "text_bytes", "removed", "kept", "tokens", "lowest", "highest",
             "candidates", "notes", "labels", "cut")  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.SAVED}

    def restore(self, state: dict[str, Any], records: npt.NDArray[Any], sketches: Any) -> None:
        for name in self.SAVED:
            setattr(self, name, state[name])
        candidates = ~np.isin(records["why"], [EMPTY, *FINAL])
        self.seen = Seen(records["digest"][candidates])
        self.near = NearDuplicates(sketches)

    @property
    def full(self) -> bool:
        """Whether a limit is reached; a first validation document may still be wanted."""
        tokens, documents = self.rules.limit_tokens, self.rules.limit_documents
        return (tokens is not None and self.tokens >= tokens) or (
            documents is not None and sum(self.kept.values()) >= documents
        )

    @property
    def done(self) -> bool:
        return self.full and (self.rules.val_fraction == 0 or self.kept["val"] > 0)

    def judge(self, piece: Piece, start: int, held_out: bool | None = None) -> Judged:
        """Decide on the documents of a piece from `start` on. `held_out`, if given, says on which
        side of the split all of them are."""
        why = piece.removed.copy()
        fresh = why[start:] == KEPT
        if self.rules.held_out is None:
            candidates = np.flatnonzero(fresh) + start
            first = self.seen.first_of_each(piece.digests[candidates])
            why[candidates[~first]] = COPY
        val = (
            self._validation(piece, start)
            if held_out is None
            else np.full(len(piece), held_out, bool)
        )
        judged = Judged(piece, start, len(piece), why, val)
        if piece.sketches is not None:
            self._near(judged)
        if self.rules.limit_tokens is not None or self.rules.limit_documents is not None:
            self._limit(judged)
        return judged

    def _validation(self, piece: Piece, start: int) -> Bools:
        """Which documents belong to validation, kept or not."""
        match self.rules.decision:
            case {"rule": "lowest", "digest": digest}:
                return np.equal(piece.digests, np.uint64(digest))
            case {"rule": "highest", "digest": digest}:
                return np.not_equal(piece.digests, np.uint64(digest))
        if self.rules.held_out is not None:
            first = self.documents - start
            a, b = np.searchsorted(self.rules.held_out, [first, first + len(piece)])
            val = np.zeros(len(piece), bool)
            val[self.rules.held_out[a:b] - first] = True
            return val
        return piece.digests < np.uint64(self.rules.val_fraction * (2**64 - 2**11))

    def _near(self, judged: Judged) -> None:
        piece = judged.piece
        assert piece.sketches is not None and piece.sketch_sizes is not None
        kept = np.flatnonzero(judged.why[judged.start :] == KEPT) + judged.start
        shares = self.near.shares(piece.sketches, piece.sketch_sizes, kept.tolist())
        judged.shares = {n: share for n, share in shares.items() if share >= THRESHOLD}
        judged.why[list(judged.shares)] = NEAR

    def _limit(self, judged: Judged) -> None:
        """Find where the limit is reached, and leave out all that follows, except the first
        validation document if there is none yet."""
        kept = np.flatnonzero(judged.why == KEPT)
        kept = kept[kept >= judged.start]
        sizes = judged.piece.lengths[kept] + 1
        before = self.tokens + np.cumsum(sizes) - sizes
        number = sum(self.kept.values()) + np.arange(len(kept))
        within = np.ones(len(kept), bool)
        if self.rules.limit_tokens is not None:
            within &= before < self.rules.limit_tokens
        if self.rules.limit_documents is not None:
            within &= number < self.rules.limit_documents
        taken = kept[within]
        missing = self.rules.val_fraction > 0 and not (self.kept["val"] or judged.val[taken].any())
        beyond = kept[~within]
        if not len(beyond):
            return
        judged.why[beyond] = BEYOND
        if not missing:
            judged.stop = int(beyond[0])
        elif len(found := beyond[judged.val[beyond]]):
            judged.why[found[0]] = KEPT
            judged.stop = int(found[0]) + 1

    def account(self, judged: Judged, start: int, stop: int, place: str) -> bytes:
        """Count the documents `start` to `stop` of a piece, which come from `place` unless they
        have labels. Returns their records."""
        piece, why = judged.piece, judged.why[start:stop]
        self.documents += stop - start
        candidates = piece.digests[start:stop][(why == KEPT) | (why == BEYOND)]
        if len(candidates):
            self.candidates += len(candidates)
            self.lowest = min(self.lowest, int(candidates.min()))
            self.highest = max(self.highest, int(candidates.max()))
        for number, count in enumerate(np.bincount(why, minlength=len(REASONS))):
            if count and number not in (KEPT, BEYOND):
                self.removed[REASONS[number]] = self.removed.get(REASONS[number], 0) + int(count)
        kept = why == KEPT
        val = judged.val[start:stop]
        sizes = piece.lengths[start:stop][kept] + 1
        if piece.cuts is None:
            self.kept["train"] += int((kept & ~val).sum())
            self.kept["val"] += int((kept & val).sum())
        else:  # each document becomes two, unless nothing follows the cut
            two = piece.cuts[start:stop, 1][kept] < sizes - 1
            self.kept["train"] += len(sizes)
            self.kept["val"] += int(two.sum())
            sizes = sizes + two
        self.tokens += int(sizes.sum())
        self.text_bytes += int(piece.sizes[start:stop][kept].sum())
        labels = [] if piece.labels is None else piece.labels[start:stop]
        if len(set(labels)) <= 1:
            self.label_all(labels[0] if labels else place, int(kept.sum()), int(sizes.sum()))
        else:
            for n, size in zip(np.flatnonzero(kept).tolist(), sizes.tolist(), strict=True):
                self.label_all(labels[n], 1, size)
        records = np.zeros(stop - start, RECORD)
        records["digest"], records["why"] = piece.digests[start:stop], why
        return records.tobytes()

    def label_all(self, label: str, documents: int, tokens: int) -> None:
        """Count documents that all come from one place."""
        if not documents:
            return
        entry = self.labels.setdefault(label, [0, 0])
        entry[0] += documents
        entry[1] += tokens
        if len(self.labels) > 2 * MOST_LABELS:
            by_tokens = sorted(self.labels.items(), key=lambda item: (-item[1][1], item[0]))
            self.labels = dict(by_tokens[:MOST_LABELS])

    def listed(self, judged: Judged, start: int, stop: int, chunk: str) -> bytes:
        """Lines for removed.jsonl."""
        lines = []
        piece = judged.piece
        removed = np.flatnonzero((judged.why != KEPT) & (judged.why != BEYOND))
        for n in removed[(removed >= start) & (removed < stop)].tolist():
            line: dict[str, Any] = {
                "document": self.documents + n - start,
                "in": chunk,
                "number": piece.first + n,
                "why": REASONS[judged.why[n]],
                DIGEST: f"{int(piece.digests[n]):016x}",
            }
            if piece.labels is not None:
                line["from"] = piece.labels[n]
            if n in judged.shares:
                line["share_seen"] = round(judged.shares[n], 4)
            if piece.beginnings is not None:
                line["begins"] = piece.beginnings[n]
            if n in piece.details:
                line["detail"] = piece.details[n]
            lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        return "".join(lines).encode("utf-8", "backslashreplace")


BEYOND = 255
"""Would be kept but for the limit."""
FINAL = (FILTERED, CONTAMINATED)
"""Reasons that depend on the document alone: a copy of it gets the same reason, not COPY."""
