"""The terminal behind standard error: colours, progress bars."""

from rich.console import Console

from outpace.core.log import discard


class _SturdyConsole(Console):
    """rich leaves the process with exit code 1 when its reader is gone; this one goes on."""

    def on_broken_pipe(self) -> None:
        discard(self.file)


err = _SturdyConsole(stderr=True, highlight=False, soft_wrap=True)
