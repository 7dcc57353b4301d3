"""From an exception to one line and an exit code and, for a bug, a file with the traceback. Neither
contains secrets from the environment.
"""

import contextlib
import datetime
import errno
import importlib.metadata
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

from outpace import __version__
from outpace.core.errors import (
    NetworkError,
    OutOfMemory,
    OutpaceError,
    StorageError,
    UsageError,
)
from outpace.core.secrets import redact

OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory", "cannot allocate memory", "out of memory", "status_alloc_failed",
)  # fmt: skip
"""PyTorch's wording, in a RuntimeError, on a CPU and on a GPU. The last comes from cuBLAS and
cuDNN, which allocate memory of their own."""

ERROR = re.compile(r"FAILED|error\[|[\w.]*(Error|Exception|Exit|Interrupt)\b")
"""How a line begins that reports an error."""


def explain(error: BaseException, folder: Path | None = None) -> OutpaceError:
    """The OutpaceError that says what `error` means to the user.

    Failing disks, networks and memory have their own exit codes. Anything else is a bug: its
    traceback goes to a `crash-*.txt` in `folder` (or else the temporary folder), which the line
    names. With OUTPACE_TRACEBACK=1 there is no file, because `main` prints the traceback.
    """
    if isinstance(error, OutpaceError):
        return error
    package = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if package and not package.startswith("outpace"):
        extra = _extra_of(package)
        return UsageError(
            "NO-PACKAGE",
            f"{sys.executable} has no package {package}",
            do=f"pip install 'outpace[{extra}]'"
            if extra
            else "run `make install` once, then `source .venv/bin/activate`",
        )
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return UsageError("BAD-PATH", "a path contains a NUL byte", do="name one without it")
    if is_out_of_memory(error):
        return OutOfMemory(
            "MEMORY",
            f"out of memory: {first_line(error)}",
            do="choose a smaller --micro_batch_size with more --gradient_accumulation_steps, a "
            "smaller --context or --model_size, or end other programs",
        )
    if isinstance(error, (ConnectionError, TimeoutError)):
        return NetworkError("NETWORK", first_line(error), do="check the network, then run again")
    if isinstance(error, OSError):
        where = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        )
        return StorageError(
            "STORAGE",
            f"{redact(where)}{error.strerror or first_line(error)}",
            do="check the path, its permissions and the free space, then run it again",
        )
    return OutpaceError(
        "BUG", f"{type(error).__name__}: {first_line(error)}", do=_report(error, folder)
    )


def _extra_of(package: str) -> str | None:
    """The extra that installs an optional package; None for a package in every installation."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("outpace") or []:
            name, _, marker = line.partition(";")
            extra = re.search(r"extra == [\"'](\w+)[\"']", marker)
            if extra and re.match(rf"{package}\b", name.replace("-", "_")):
                return extra[1]
    return None


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without secrets, or its type if it has no text."""
    return next(iter(redact(str(error)).strip().splitlines()), type(error).__name__)


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks on standard error."""
    return os.environ.get("OUTPACE_TRACEBACK", "") not in ("", "0")


def last_error(output: str) -> str:
    """The last line of a process's output that reports an error (Python's, outpace's or pytest's),
    because libraries may print more after it; else the last line; empty if there is no output."""
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    return ([x for x in lines if ERROR.match(x)] or lines or [""])[-1]


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(t in text for t in OUT_OF_MEMORY_TEXTS)


def _report(error: BaseException, folder: Path | None) -> str:
    if wants_traceback():
        return "this is a bug in outpace: report it with the traceback above"
    time = datetime.datetime.now(datetime.UTC)
    name = f"crash-{time:%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    head = f"outpace {__version__}, Python {sys.version.split()[0]}, {time:%Y-%m-%d %H:%M:%S} UTC\n"
    text = redact(head + f"{sys.argv}\n\n" + "".join(traceback.format_exception(error)))
    for place in (folder, Path(tempfile.gettempdir())):
        if place is not None and place.is_dir():
            try:
                (place / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            except OSError:
                continue
            return f"this is a bug in outpace: report it with {place / name}"
    return "this is a bug in outpace: report it with the traceback that OUTPACE_TRACEBACK=1 prints"
