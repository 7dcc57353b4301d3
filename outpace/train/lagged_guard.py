"""The guard's place in the loop: it sees each step's numbers one step late."""

from typing import Any

from outpace.train import incident
from outpace.train.assemble import Session
from outpace.train.guard import Diverged, Incident, Values
from outpace.train.progress import Progress
from outpace.train.step import Reading, StepResult


class LaggedGuard:
    """Gives each step's numbers to the guard one step late, when the device has long computed them,
    so that the host never waits for it; keeps the batches of bad steps."""

    def __init__(self, s: Session, progress: Progress) -> None:
        self.s, self.progress = s, progress
        self._waiting, s.guard.pending = s.guard.pending, None
        """The step that the guard has not seen yet."""
        self._reading: tuple[int, Reading] | None = None
        """The newest step, until its numbers have arrived."""
        self._newest = self._waiting
        self._data_step = progress.data_step - 1

    def enter(self, result: StepResult) -> None:
        """Note a step that was just queued, and give the one before it to the guard. Raises
        Diverged."""
        self.flush()
        self._reading = self.progress.step, Reading(result)
        self._data_step = self.progress.data_step - 1

    def newest(self) -> Values:
        """Wait for the device and return the newest step's numbers."""
        if self._reading is not None:
            step, reading = self._reading
            self._newest = self._waiting = Values(step, *reading.wait())
            self._reading = None
        assert self._newest is not None
        return self._newest

    def guard_state(self) -> dict[str, Any]:
        """The guard's state, for a checkpoint of the newest step."""
        self.newest()
        return self.s.guard.state(self._waiting)

    def flush(self) -> None:
        """Give the newest step to the guard, too. Raises Diverged."""
        if self._reading is not None:
            self.newest()
        if self._waiting is not None:
            values, self._waiting = self._waiting, None
            try:
                self._record(self.s.guard.absorb(values))
            except Diverged as diverged:
                self._record(diverged.incident)
                raise

    def _record(self, found: Incident | None) -> None:
        if found is not None and self.s.config.safety.guard:
            incident.record(self.s, self.progress, found, self._data_step)
