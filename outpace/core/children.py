"""Processes that we start do not outlive us: Linux ends them when their parent is gone, however it
went, so that none is left at work on a GPU."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def start(
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """A process in a group of its own, with all that it starts; what it says goes to `log`."""
    with open(log, "wb") as out:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_die_with_parent if _LIBC is not None else None,
        )


def send(process: "subprocess.Popen[bytes]", number: int) -> None:
    """A signal to its group; nothing where that is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End it, and all that it started, at once."""
    send(process, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    """In the child, before its command: SIGKILL when the one that started it ends."""
    assert _LIBC is not None
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
