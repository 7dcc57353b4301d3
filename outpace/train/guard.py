"""Bad numbers: what a step's loss and gradient norm may be, and what is done about the rest.

A step whose loss or gradient is not finite changes nothing: that is decided on the device, in the
step itself. The guard runs on the host, one step behind the device, so that nothing waits for it.
It counts the steps skipped in a row and detects spikes: finite values far above the median of the
last steps, measured in median absolute deviations (Iglewicz and Hoaglin 1993, "How to detect and
handle outliers"). Neither spikes nor non-finite values enter the window, so they do not blunt
later detection.
"""

import math
import statistics
from collections import deque
from dataclasses import astuple, dataclass
from typing import Any

WINDOW = 128
WARM = 32
"""Values before anything is called a spike, and spikes in a row that become the new normal."""
MAD_TO_SIGMA = 1.4826
"""MAD of a normal distribution times this is its standard deviation."""
LEAST_SIGMA = 0.01
"""Least deviation, as a share of the median: where a window hardly varies, noise is no spike."""


@dataclass(frozen=True)
class Values:
    """One step's numbers, read from the device."""

    step: int
    loss: float
    """Mean over all processes' targets, nats."""
    grad_norm: float
    skipped: bool


@dataclass(frozen=True)
class Incident:
    """A step whose numbers were bad."""

    values: Values
    kind: str
    """`not finite`, or `spike`."""
    loss_limit: float
    norm_limit: float


class Diverged(Exception):
    """Too many steps in a row were skipped; the run rolls back."""

    def __init__(self, first: int, last: int, incident: Incident) -> None:
        super().__init__(f"steps {first} to {last} were skipped")
        self.first, self.last, self.incident = first, last, incident


class Guard:
    """The recent history of a run's loss and gradient norm; all of it is in each checkpoint."""

    def __init__(self, *, most_skipped: int, threshold: float, skip_spikes: bool) -> None:
        self.most_skipped, self.threshold, self.skip_spikes = most_skipped, threshold, skip_spikes
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._skipped_in_a_row = self._spikes_in_a_row = 0
        self.pending: Values | None = None
        """A step from a checkpoint that is still to be absorbed."""

    def forget_streak(self) -> None:
        """After a rollback, count from zero."""
        self._skipped_in_a_row = self._spikes_in_a_row = 0
        self.pending = None

    def limits(self) -> tuple[float, float]:
        """Largest loss and gradient norm that are no spikes; infinite at first."""
        return self._limit(self._losses), self._limit(self._norms)

    def skip_limits(self) -> tuple[float, float]:
        """Loss and gradient norm beyond which a step is to be skipped."""
        return self.limits() if self.skip_spikes else (math.inf, math.inf)

    def absorb(self, values: Values) -> Incident | None:
        """Take in a step; returns what was wrong with it. Raises Diverged after too many skips."""
        loss_limit, norm_limit = self.limits()
        finite = math.isfinite(values.loss) and math.isfinite(values.grad_norm)
        spike = finite and (values.loss > loss_limit or values.grad_norm > norm_limit)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if values.skipped else 0
        self._spikes_in_a_row = self._spikes_in_a_row + 1 if spike else 0
        if self._spikes_in_a_row >= WARM:  # the new normal
            self._losses.clear()
            self._norms.clear()
            self._spikes_in_a_row, spike = 0, False
        if finite and not spike:
            self._losses.append(values.loss)
            self._norms.append(values.grad_norm)
        kind = "spike" if finite else "not finite"
        incident = Incident(values, kind, loss_limit, norm_limit)
        if self._skipped_in_a_row >= self.most_skipped:
            raise Diverged(values.step - self._skipped_in_a_row + 1, values.step, incident)
        return None if finite and not spike else incident

    def state(self, pending: Values | None) -> dict[str, Any]:
        """As JSON."""
        return {
            "pending": pending and [_number(value) for value in astuple(pending)],
            "losses": list(self._losses),
            "norms": list(self._norms),
            "skipped_in_a_row": self._skipped_in_a_row,
            "spikes_in_a_row": self._spikes_in_a_row,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`. KeyError, TypeError or ValueError if it is not valid."""
        pending = state["pending"]
        self.pending = None
        if pending is not None:
            step, loss, norm, skipped = (math.nan if v is None else v for v in pending)
            self.pending = Values(int(step), loss, norm, bool(skipped))
        self._losses = deque(map(float, state["losses"]), WINDOW)
        self._norms = deque(map(float, state["norms"]), WINDOW)
        self._skipped_in_a_row = int(state["skipped_in_a_row"])
        self._spikes_in_a_row = int(state["spikes_in_a_row"])

    def _limit(self, window: deque[float]) -> float:
        if not self.threshold or len(window) < WARM:
            return math.inf
        median = statistics.median(window)
        mad = statistics.median(abs(value - median) for value in window)
        return median + self.threshold * max(MAD_TO_SIGMA * mad, LEAST_SIGMA * abs(median))


def _number(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None
