"""Which signals ask a long command to save what it has and stop."""

import os
import signal
from typing import NoReturn

SAME_STOP_S = 1.0
"""Signals this close together are one request: a scheduler may signal torchrun and its workers, and
torchrun passes it on."""


def stop_signals() -> list[signal.Signals]:
    """SIGTERM, SIGINT, SIGUSR1 (what schedulers send ahead of a time limit), and SIGHUP (a terminal
    that closes; ignored under nohup, as everywhere)."""
    found = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def leave_at_once(number: int) -> NoReturn:
    """End the process without saving: 130 for SIGINT, else 143 or what a shell says of the signal.
    SIGUSR1 counts as the SIGTERM that it announces."""
    os._exit(128 + (number if number != signal.SIGUSR1 else signal.SIGTERM))
