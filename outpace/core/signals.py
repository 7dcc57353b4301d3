"""The signals that ask a long command to save its work and stop."""

import os
import signal
from typing import NoReturn

SAME_STOP_S = 1.0
"""Signals this close together are one request: a scheduler may signal torchrun and its workers, and
torchrun passes it on."""


def stop_signals() -> list[signal.Signals]:
    """SIGTERM, SIGINT, SIGUSR1 (which schedulers send ahead of a time limit), and SIGHUP (a closed
    terminal; ignored under nohup, as everywhere)."""
    found = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def leave_at_once(number: int) -> NoReturn:
    """End the process without saving, with the exit code a shell reports for the signal (130 for
    SIGINT, 143 for SIGTERM). SIGUSR1 counts as the SIGTERM that it announces."""
    os._exit(128 + (number if number != signal.SIGUSR1 else signal.SIGTERM))
