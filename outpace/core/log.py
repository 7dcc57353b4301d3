"""What people see: results on standard output, progress and warnings on standard error."""

import sys

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str = "") -> None:
    """Print a plain line to standard output; text is shown as it is, never as mark-up."""
    out.print(_printable(message), markup=False)


def note(message: str) -> None:
    """Print a dim line to standard error."""
    err.print(_printable(message), style="dim", markup=False)


def warn(message: str) -> None:
    """Print a warning that cannot be missed."""
    err.print(f"warning: {_printable(message)}", style="bold yellow", markup=False)


def fail(message: str) -> None:
    """Print an error line; plain when not on a terminal, so that scripts can match it."""
    if err.is_terminal:
        err.print(_printable(message), style="bold red", markup=False)
    else:
        print(_printable(message), file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    """Show control characters (terminal escapes in a sample, say) instead of obeying them."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
