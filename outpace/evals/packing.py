"""Packing questions into rows of a few lengths: each context once, followed by its continuations,
and several questions in a row. Masks and positions are as if each continuation followed its context
alone.

    row:       c c c c a a a b b | c c c a b b b | . .
    position:  0 1 2 3 4 5 6 4 5   0 1 2 3 3 4 5   0 0
    branch:    0 0 0 0 1 1 1 2 2   0 0 0 1 2 2 2   0 0
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROW_TOKENS = 512
"""The shortest row; longer ones are this doubled. The cost of attention is quadratic in it."""
UNPADDED = 0


@dataclass(frozen=True)
class Request:
    """Score each of `continuations` after `context`; all are token ids, the context never empty."""

    context: list[int]
    continuations: list[list[int]]


@dataclass(frozen=True)
class Tree:
    """A context and its continuations, as a model reads them. The last token of a continuation is
    predicted but not read."""

    context: list[int]
    branches: list[list[int]]
    """Whole continuations."""
    scores: list[int]
    """Index of the score that each branch adds to."""

    def __len__(self) -> int:
        """Tokens to read."""
        return len(self.context) + sum(max(0, len(b) - 1) for b in self.branches)


@dataclass(frozen=True)
class Batch:
    """Rows of whole trees, padded to one length, or unpadded."""

    width: int
    """Length of the rows. UNPADDED: they keep their own lengths and are read end to end as one."""
    rows: list[list[Tree]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, padding included."""
        return [self.width or sum(map(len, row)) for row in self.rows]

    @property
    def tokens(self) -> int:
        """Tokens to read, padding included."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Arrays:
    """A batch as numbers."""

    layout: npt.NDArray[np.int64]
    """(4, B, T): token, position, question in its row (-1: padding), branch (0: context). B is 1
    for an unpadded batch."""
    predictions: npt.NDArray[np.int64]
    """(3, N): place in B x T that predicts, the token that is predicted, the score it adds to."""


def trees(requests: Sequence[Request], limit: int) -> list[Tree]:
    """One tree per request. A request longer than `limit` positions becomes one tree per
    continuation, each of which loses the start of its context, as in lm-eval
    (`_loglikelihood_tokens`: the last limit + 1 tokens)."""
    out, score = [], 0
    for r in requests:
        longest = max(map(len, r.continuations))
        if len(r.context) + longest - 1 <= limit:
            scores = list(range(score, score + len(r.continuations)))
            out.append(Tree(r.context, r.continuations, scores))
        else:
            for i, continuation in enumerate(r.continuations):
                row = (r.context + continuation)[-(limit + 1) :]
                cut = max(1, len(row) - len(continuation))
                out.append(Tree(row[:cut], [row[cut:]], [score + i]))
        score += len(r.continuations)
    return out


def pack(all_trees: Sequence[Tree], batch_tokens: int, row_tokens: int = ROW_TOKENS) -> list[Batch]:
    """All trees in batches of about `batch_tokens`, largest first. For each row length, all batches
    but the last have equally many rows: few shapes, little padding."""
    by_width: dict[int, list[Tree]] = {}
    for tree in all_trees:
        width = row_tokens
        while width < len(tree):
            width *= 2
        by_width.setdefault(width, []).append(tree)
    batches = []
    for width in sorted(by_width, reverse=True):
        rows = _best_fit(by_width[width], width)
        n_batches = -(-len(rows) * width // max(width, batch_tokens))
        size = -(-len(rows) // n_batches)
        rows += [[] for _ in range(-len(rows) % size)]
        batches += [Batch(width, rows[i : i + size]) for i in range(0, len(rows), size)]
    return batches


def unpadded(all_trees: Sequence[Tree], batch_tokens: int) -> list[Batch]:
    """All trees, largest first, one per row, in unpadded batches with about equally many tokens: at
    most `batch_tokens`, unless a single tree is longer."""
    total = sum(map(len, all_trees))
    share = total / max(1, -(-total // batch_tokens))
    batches: list[Batch] = []
    read = 0
    for tree in sorted(all_trees, key=len, reverse=True):
        if read >= share * len(batches) or batches[-1].tokens + len(tree) > batch_tokens:
            batches.append(Batch(UNPADDED, []))
        batches[-1].rows.append([tree])
        read += len(tree)
    return batches


def _best_fit(some: Sequence[Tree], width: int) -> list[list[Tree]]:
    """Rows of at most `width` tokens by best fit decreasing: the largest tree first, each into the
    fullest row that has room for it."""
    rows: list[list[Tree]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for tree in sorted(some, key=len, reverse=True):
        at = bisect.bisect_left(room, (len(tree), -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = width, len(rows)
            rows.append([])
        rows[row].append(tree)
        bisect.insort(room, (left - len(tree), row))
    return rows


def arrays(batch: Batch) -> Arrays:
    """What a model reads of a batch, and what it is asked to predict."""
    layout = np.zeros((4, batch.tokens), np.int64)
    layout[2] = -1
    places: list[int] = []
    tokens: list[int] = []
    scores: list[int] = []
    start = 0
    for row, length in zip(batch.rows, batch.lengths, strict=True):
        ids: list[int] = []
        positions: list[int] = []
        questions: list[int] = []
        branches: list[int] = []
        for q, tree in enumerate(row):
            n = len(tree.context)
            last = start + len(ids) + n - 1  # of the context, which predicts every first
            ids += tree.context
            positions += range(n)
            branches += [0] * n
            for b, (branch, score) in enumerate(zip(tree.branches, tree.scores, strict=True), 1):
                m = len(branch) - 1
                if m < 0:
                    continue
                at = start + len(ids)
                places += (last, *range(at, at + m))
                tokens += branch
                scores += [score] * (m + 1)
                ids += branch[:-1]
                positions += range(n, n + m)
                branches += [b] * m
            questions += [q] * len(tree)
        layout[:, start : start + len(ids)] = ids, positions, questions, branches
        start += length
    rows = layout.reshape(4, -1, batch.width or batch.tokens)
    return Arrays(rows, np.array([places, tokens, scores], np.int64))
