"""The terminal behind standard error: colours, progress bars."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress

from outpace.core.log import discard, note

LINE_EVERY_S = 30.0
"""Seconds between progress lines where there is no terminal."""


class _SturdyConsole(Console):
    """rich exits with code 1 when its reader is gone, and raises when the disk is full; this
    console carries on in both cases."""

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
    """A progress bar with the time left on a terminal; elsewhere a line now and then. Call the
    result with the fraction done; it returns True."""
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
"""Plain lines on standard error in a notebook, too, where rich would print a block of HTML for each
line."""
LIVE = err.is_terminal and not err.is_dumb_terminal
"""Whether progress bars can be shown."""
