"""Processes that we start do not outlive us: Linux ends them when their parent is gone, however it
went, so that none is left at work on a GPU."""

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def die_with_parent() -> None:
    """As `preexec_fn` of Popen: SIGKILL for this process when the one that started it ends."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
