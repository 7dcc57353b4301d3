"""A thread that notices when nothing goes on any more: it writes the stacks of all threads to the
run folder, names what was being done, and in the end ends the process, which nobody else could.
"""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable
from pathlib import Path

from outpace.core.errors import PeerLost
from outpace.core.log import fail, warn

TICKS = 200
"""Looks in the time allowed. A process that was stopped (SIGSTOP, a sleeping laptop) missed its
looks and is not to blame for the time."""


class Watchdog:
    """Watches from `start` to `stop`; `beat` tells it that work goes on. After half of
    `limit_s` without a beat: a warning and the stacks; after all of it: `give_up(error)`, then the
    process ends with exit code 9. Off when `limit_s` is 0."""

    def __init__(
        self, limit_s: float, folder: Path, rank: int, give_up: Callable[[PeerLost], None]
    ) -> None:
        self.limit_s, self.folder, self.rank, self.give_up = limit_s, folder, rank, give_up
        self.doing = "starting"
        self._silent = 0
        self._over = threading.Event()

    def start(self) -> None:
        if self.limit_s:
            threading.Thread(target=self._watch, name="outpace-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def beat(self, doing: str = "") -> None:
        """Work goes on, now at `doing`."""
        self._silent = 0
        self.doing = doing or self.doing

    def _watch(self) -> None:
        while not self._over.wait(self.limit_s / TICKS):
            self._silent += 1
            if self._silent == TICKS // 2:
                where = self._write_stacks()
                warn(
                    f"[STUCK] {self.doing} has taken {self.limit_s / 2:.0f} s without a sign of "
                    f"life; stacks in {where}"
                )
            elif self._silent == TICKS:
                error = PeerLost(
                    "STUCK",
                    f"{self.doing} (process {self.rank}) showed no sign of life for "
                    f"{self.limit_s:.0f} s; stacks in {self._write_stacks()}",
                    kept="the last verified checkpoint",
                    do="look at the stacks, then run the same command again; a longer "
                    "--watchdog_minutes if the machine is that slow",
                )
                with contextlib.suppress(Exception):
                    self.give_up(error)
                fail(str(error))
                os._exit(error.exit_code)

    def _write_stacks(self) -> Path:
        path = self.folder / f"stacks-{self.doing.replace(' ', '-')}-process-{self.rank}.txt"
        with contextlib.suppress(OSError), open(path, "w") as f:
            faulthandler.dump_traceback(f, all_threads=True)
        return path
