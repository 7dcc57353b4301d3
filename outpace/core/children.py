"""Child processes that do not outlive us: Linux kills them when their parent ends, however it ends,
so that none keeps a GPU busy.
"""

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
    """Start a process in its own process group, with its standard output and error in `log`."""
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
    """Send a signal to the whole process group, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and everything it started, at once."""
    send(process, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    """Runs in the child before its command: ask Linux for SIGKILL when the parent ends."""
    assert _LIBC is not None
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
