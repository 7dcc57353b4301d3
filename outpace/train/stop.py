"""Leaving in good order: the first SIGTERM or Ctrl-C asks for a save, the second leaves at once."""

import os
import signal
import time
from types import FrameType

from outpace.core.log import warn


class StopRequest:
    """Whether and why the run should save and stop. Asked between micro-steps and batches."""

    def __init__(self, max_hours: float | None = None) -> None:
        self.reason = ""
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @property
    def requested(self) -> bool:
        if not self.reason and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "the time of --max_hours is over"
        return bool(self.reason)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.reason:
            os._exit(128 + number)
        self.reason = f"{signal.Signals(number).name} received"
        warn(f"{self.reason}: saving, then stopping; once more to stop at once")
