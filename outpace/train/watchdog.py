"""A thread that notices when the process hangs: it writes the stacks of all threads to the run
folder, or to the temporary one where this host has none, names the current activity, and finally
ends the process.
"""

import contextlib
import faulthandler
import os
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from outpace.core.errors import PeerLost
from outpace.core.log import fail, warn
from outpace.core.network import within

TICKS = 200
"""Checks within the time limit. Checks are counted instead of seconds, so that the time in which a
process was stopped (SIGSTOP, a sleeping laptop) does not count."""
PATIENCE_S = 5.0
"""Most seconds for each report: the disk, or the reader of a stream, may be what hangs."""


class Watchdog:
    """Watches from `start` to `stop`; `beat` reports progress. After half of `limit_s` without a
    beat, it warns and writes the stacks; after all of it, it calls `give_up(error)` and ends the
    process with exit code 9. Off if `limit_s` is 0."""

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
        """Report progress; `doing` names the current activity."""
        self._silent = 0
        self.doing = doing or self.doing

    def _watch(self) -> None:
        while not self._over.wait(self.limit_s / TICKS):
            self._silent += 1
            if self._silent == TICKS // 2:
                said = (
                    f"[STUCK] {self.doing} has taken {self.limit_s / 2:.0f} s without a sign of "
                    f"life; stacks in {self._stacks}"
                )
                _try(self._write_stacks, partial(warn, said))
            elif self._silent == TICKS:
                error = PeerLost(
                    "STUCK",
                    f"{self.doing} (process {self.rank}) showed no sign of life for "
                    f"{self.limit_s:.0f} s; stacks in {self._stacks}",
                    kept="the last verified checkpoint",
                    do="look at the stacks, then run the same command again; a longer "
                    "--watchdog_minutes if the machine is that slow",
                )
                _try(self._write_stacks, partial(self.give_up, error), partial(fail, str(error)))
                os._exit(error.exit_code)

    @property
    def _stacks(self) -> Path:
        # Another host than the first process's may not have the run folder.
        folder = self.folder if self.folder.is_dir() else Path(tempfile.gettempdir())
        return folder / f"stacks-{self.doing.replace(' ', '-')}-process-{self.rank}.txt"

    def _write_stacks(self) -> None:
        with open(self._stacks, "w") as f:
            faulthandler.dump_traceback(f, all_threads=True)


def _try(*acts: Callable[[], object]) -> None:
    """Call each in turn, waiting at most `PATIENCE_S` for it; errors are ignored."""
    for act in acts:
        with contextlib.suppress(Exception):
            within(PATIENCE_S, act)
