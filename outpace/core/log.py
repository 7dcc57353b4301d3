"""Output to the user: results on standard output, progress and warnings on standard error. Text is
shown verbatim, never as mark-up, and secrets from the environment are hidden.

If the reader goes away (`outpace train | head -1`, a closed log viewer), training continues and the
output is dropped. The console (rich) is imported with the first line.
"""

import contextlib
import json
import os
import sys
from typing import IO, Any

from outpace.core.files import clean
from outpace.core.secrets import redact


def show(result: str, end: str = "\n") -> None:
    """Print the result of a command. OSError if standard output fails."""
    print(_printable(result), end=end, flush=True)


def show_json(result: Any) -> None:
    """Print a result as JSON in plain ASCII. NaN and infinities become null."""
    show(json.dumps(clean(result), indent=2))


def say(message: str = "") -> None:
    """Print progress on standard output; if that fails, the work continues without it."""
    try:
        show(redact(message))
    except OSError as error:
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            warn(f"standard output failed ({error.strerror}); continuing without it")


def note(message: str) -> None:
    """Print a dim line to standard error."""
    _remark(_printable(redact(message)), "dim")


def warn(message: str) -> None:
    """Print a warning to standard error."""
    _remark(f"warning: {_printable(redact(message))}", "bold yellow")


def fail(message: str) -> None:
    """Print an error as exactly one line: plain text, for scripts to match, unless standard error
    is a terminal and rich is installed."""
    line = _printable(redact(message), keep="\t")
    if sys.stderr.isatty():
        with contextlib.suppress(ModuleNotFoundError):
            return _remark(line, "bold red")
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def _remark(line: str, style: str) -> None:
    """Print a line to standard error; drop it if that fails (a full disk under a log)."""
    from outpace.core.console import err

    try:
        err.print(line, style=style, markup=False)
    except OSError:
        discard(sys.stderr)


def discard(stream: IO[str]) -> None:
    """Send everything still to be written to `stream` to /dev/null."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _printable(text: str, keep: str = "\n\t") -> str:
    """Show control characters (terminal escapes in a sample, say) instead of obeying them."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
