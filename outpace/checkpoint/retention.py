"""Which checkpoints are kept: the newest few, milestones, and the best by validation loss.

Only checkpoints count that verify and that led to where the run is now: not those of another run in
the same folder, nor those that a rollback abandoned. A checkpoint saved because of a stop or signal
never replaces a regular one: otherwise an interrupted run would roll back to another step.
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outpace.checkpoint import store
from outpace.core.errors import StorageError
from outpace.core.log import warn

LEAST = 2
"""Good checkpoints that are always kept."""


@dataclass
class Retention:
    """What to keep of one run's checkpoints."""

    last: int = LEAST
    """How many of the newest to keep."""
    milestone_every_steps: int = 0
    """Keep every checkpoint whose step is a multiple of this; 0: none."""
    best: bool = False
    """Keep the one with the lowest validation loss."""
    verified: set[Path] = field(default_factory=set)
    """Checkpoints that this process has read back and found whole."""

    def prune(
        self,
        folder: Path,
        *,
        run: str,
        left_at: Sequence[int] = (),
        losses: Mapping[int, float] | None = None,
    ) -> list[Path]:
        """Delete what need not be kept, and return it. `left_at[i]` is the step at which the run
        left lineage i; `losses` is the validation loss by step. Deletes nothing if the newest does
        not verify, or if fewer than two good ones would be left."""
        candidates = [p for p in store.paths(folder) if store.run_of(p) in (run, None)]
        history = [p for p in candidates if is_ancestor(p, left_at)]
        if not history or not self._good(history[-1]):
            return []
        due = [p for p in history if is_due(p)]
        stay = {history[-1]} | self._newest(due)
        if len(stay) < max(self.last, LEAST):
            stay |= self._newest(history)
        if len(stay) < max(self.last, LEAST):
            return []
        stay |= {p for p in history if self._is_milestone(p)}
        losses = losses or {}
        if self.best and (scored := [p for p in due if store.step_of(p) in losses]):
            stay.add(min(scored, key=lambda p: losses[store.step_of(p)]))
        return [p for p in candidates if p not in stay and self._delete(p)]

    def lasting(self, due: Sequence[Path], oldest: int = 0) -> tuple[list[Path], int]:
        """Those of `due`, oldest first, that exist whatever the losses were and however the run was
        interrupted, because a rollback may use no others; and the step of the oldest of them that
        is not a milestone. `oldest` is that step at the previous rollback: an uninterrupted run
        would have deleted anything older by now."""
        newest = [p for p in due if store.step_of(p) >= oldest][-max(self.last, LEAST) :]
        lasting = [p for p in due if p in newest or self._is_milestone(p)]
        return lasting, store.step_of(newest[0]) if newest else oldest

    def _newest(self, paths: Sequence[Path]) -> set[Path]:
        good = (path for path in reversed(paths) if self._good(path))
        return set(itertools.islice(good, max(self.last, LEAST)))

    def _delete(self, path: Path) -> bool:
        """Delete a checkpoint; warn if that fails, which is no reason to stop training."""
        try:
            store.discard(path)
        except OSError as error:
            warn(f"[NOT-REMOVED] {path}: {error.strerror or error}; training goes on")
            return False
        self.verified.discard(path)
        return True

    def _is_milestone(self, path: Path) -> bool:
        every = self.milestone_every_steps
        return every > 0 and store.step_of(path) % every == 0

    def _good(self, path: Path) -> bool:
        with contextlib.suppress(StorageError):  # cannot be read just now
            if path not in self.verified and store.fault(path) is None:
                self.verified.add(path)
        return path in self.verified


def is_ancestor(path: Path, left_at: Sequence[int]) -> bool:
    """Whether a run that left lineage i at step `left_at[i]` went through this checkpoint."""
    lineage, step = store.place_of(path)
    return lineage <= len(left_at) and all(step <= left for left in left_at[lineage:])


def is_due(path: Path) -> bool:
    """Whether this is a regular checkpoint, as its manifest says."""
    with contextlib.suppress(*store.UNREADABLE):
        return store.read_manifest(path).get("due") is True
    return False
