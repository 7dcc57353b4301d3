"""Leaving in good order: the first SIGTERM or Ctrl-C asks for a save, the second leaves at once."""

import contextlib
import os
import signal
import time
from types import FrameType

SAME_STOP_S = 1.0
"""Signals this close together are one request: a scheduler may signal torchrun and its workers, and
torchrun passes it on."""


class StopRequest:
    """Whether and why the run should save and stop. Asked between micro-steps and batches."""

    def __init__(self, max_hours: float | None = None) -> None:
        self.reason = ""
        self._signalled: float | None = None
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
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
            name = signal.Signals(number).name
            self.reason = self.reason or f"{name} received"
            # Straight to the descriptor: the handler may run inside a write to standard error.
            text = f"warning: {name} received: saving, then stopping; once more to stop at once\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
        elif now - self._signalled > SAME_STOP_S:
            os._exit(128 + number)
