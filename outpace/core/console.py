"""The terminal behind standard error: colours, progress bars."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress

from outpace.core.log import discard, note

LINE_EVERY_S = 30.0
"""Seconds between the lines of a bar where nobody watches a terminal."""


class _SturdyConsole(Console):
    """rich leaves the process with exit code 1 when its reader is gone, and raises when its disk is
    full; this one goes on."""

    def on_broken_pipe(self) -> None:
        discard(self.file)

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError:
            self._buffer.clear()
            discard(self.file)


@contextlib.contextmanager
def bar(what: str, shown: bool = True) -> Iterator[Callable[[float], bool]]:
    """A bar on a terminal, with the time left; elsewhere a line now and then. Call it with the
    share that is done; it answers True."""
    began = time.monotonic()
    with Progress(console=err, transient=True, disable=not (shown and LIVE)) as progress:
        task = progress.add_task(what, total=1.0)

        def show(done: float) -> bool:
            nonlocal began
            progress.update(task, completed=done)
            if shown and not LIVE and time.monotonic() - began >= LINE_EVERY_S:
                began = time.monotonic()
                note(f"{what}: {done:.0%}")
            return True

        yield show


err = _SturdyConsole(stderr=True, highlight=False, soft_wrap=True, force_jupyter=False)
"""In a notebook, too, lines on standard error: rich would make a block of HTML of each."""
LIVE = err.is_terminal and not err.is_dumb_terminal
"""Whether lines that change can be shown."""
