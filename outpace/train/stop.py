"""Requests from outside: stop and save, or save and go on. Asked for between micro-steps and
between the batches of an evaluation; all processes agree on the answer.
"""

import contextlib
import os
import select
import signal
import threading
import time
from types import FrameType
from typing import Any, Literal

from outpace.core.signals import SAME_STOP_S, leave_at_once, stop_signals

CONTINUE, SAVE, STOP, OUT_OF_MEMORY, FAILED = 0, 1, 2, 3, 100
"""What processes agree on: the largest wins. FAILED + n: a process ends with exit code n."""


class StopRequest:
    """Whether and why the run should save, or save and stop.

    The signals of `core/signals.py` stop it, and a second one ends the process at once. SIGUSR2
    saves and continues. `--max_hours` acts like a first signal. As a context manager it gives the
    signals back at its end: a notebook's next Ctrl-C is its own again.
    """

    def __init__(self, max_hours: float | Literal["auto"] = "auto") -> None:
        self.reason = ""
        self.wants_save = False
        self._signalled: float | None = None
        self._before: dict[int, Any] = {}
        self._deadline = None if max_hours == "auto" else time.monotonic() + 3600 * max_hours

    def listen(self) -> None:
        """Handle the signals from now on, where Python lets us: on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in stop_signals():
            self._before[number] = signal.signal(number, self._on_stop)
        self._before[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, self._on_save)

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        if self._signalled is not None:  # a second signal on its way may be the same request
            time.sleep(max(0.0, self._signalled + SAME_STOP_S - time.monotonic()))
        for number, handler in self._before.items():
            # None: of C code, which Python cannot put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def requested(self) -> bool:
        if not self.reason and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "the time of --max_hours is over"
        return bool(self.reason)

    @property
    def code(self) -> int:
        """CONTINUE, SAVE or STOP."""
        return STOP if self.requested else SAVE if self.wants_save else CONTINUE

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
            name = signal.Signals(number).name
            self.reason = self.reason or f"{name} received"
            _tell(f"{name} received: saving, then stopping; once more to stop at once")
        elif now - self._signalled > SAME_STOP_S:
            leave_at_once(number)

    def _on_save(self, _number: int, _frame: FrameType | None) -> None:
        self.wants_save = True


def _tell(text: str) -> None:
    # Straight to the descriptor: the handler may run inside a write to standard error. Not where
    # that would wait for a reader.
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"warning: {text}\n".encode())
