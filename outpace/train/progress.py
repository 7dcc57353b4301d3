"""How far training has come; saved in each checkpoint."""

import math
import uuid
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The part of a run's state that is not weights, moments or the guard's history."""

    step: int = 0
    """Optimiser steps done."""
    elapsed_s: float = 0.0
    """Seconds spent in steps, over all interruptions; without evaluation and saving."""
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Random name of the run, made when it started."""
    left_at: list[int] = field(default_factory=list)
    """Step to which each rollback returned."""
    oldest: int = 0
    """Step of the oldest checkpoint that counted at the last rollback."""
    data_shift: int = 0
    """Steps' worth of data that rollbacks have skipped."""
    pieces: int = 1
    """Into how many parts each micro-batch is cut because memory was short."""

    @property
    def lineage(self) -> int:
        """Rollbacks so far."""
        return len(self.left_at)

    @property
    def data_step(self) -> int:
        """Position in the order of the data, in steps."""
        return self.step + self.data_shift

    @classmethod
    def of(cls, state: dict[str, Any], step: int) -> "Progress":
        """From the state of a checkpoint of `step`. TypeError, ValueError or KeyError for what no
        run has written."""
        found = cls(**state["progress"])
        numbers = [found.step, found.oldest, found.data_shift, found.pieces, *found.left_at]
        if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or not isinstance(
            found.run, str
        ):
            raise TypeError("its progress holds other things than step numbers")
        if found.step != step or not 1 <= found.pieces <= 1_000_000:
            raise ValueError(f"its progress is at step {found.step}")
        if not isinstance(found.elapsed_s, (int, float)) or not 0 <= found.elapsed_s < math.inf:
            raise ValueError("its time is not a number of seconds")
        return found
