"""What people see: results on standard output, progress and warnings on standard error. Text is
shown as it is, never as mark-up; secrets of the environment are not shown.

A reader that goes away (`outpace train | head -1`, a log viewer that was closed) never stops
training: what cannot be told is dropped. The console (rich) is imported with the first line.
"""

import contextlib
import json
import os
import sys
from typing import IO, Any

from outpace.core.files import clean
from outpace.core.secrets import redact


def show(result: str, end: str = "\n") -> None:
    """Print what a command was asked for. OSError when standard output cannot take it."""
    print(_printable(result), end=end, flush=True)


def show_json(result: Any) -> None:
    """The same as JSON in plain ASCII. NaN and infinities become null."""
    show(json.dumps(clean(result), indent=2))


def say(message: str = "") -> None:
    """Tell on standard output how the work goes; without a reader the work goes on untold."""
    try:
        show(redact(message))
    except OSError as error:
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            warn(f"standard output is lost ({error.strerror}); going on without it")


def note(message: str) -> None:
    """Print a dim line to standard error."""
    _remark(_printable(redact(message)), "dim")


def warn(message: str) -> None:
    """Print a warning that cannot be missed."""
    _remark(f"warning: {_printable(redact(message))}", "bold yellow")


def fail(message: str) -> None:
    """Print an error as exactly one line; plain when not on a terminal, for scripts to match, and
    where the console is what is missing."""
    line = _printable(redact(message), keep="\t")
    if sys.stderr.isatty():
        with contextlib.suppress(ModuleNotFoundError):
            return _remark(line, "bold red")
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def _remark(line: str, style: str) -> None:
    """A line on standard error; nothing where that cannot take it (a full disk under a log)."""
    from outpace.core.console import err

    try:
        err.print(line, style=style, markup=False)
    except OSError:
        discard(sys.stderr)


def discard(stream: IO[str]) -> None:
    """Let everything that is still written to `stream` vanish."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _printable(text: str, keep: str = "\n\t") -> str:
    """Show control characters (terminal escapes in a sample, say) instead of obeying them."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
