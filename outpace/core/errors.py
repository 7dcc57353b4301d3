"""Errors a user can cause, each one line with its exit code. The traceback is for bugs alone.

    error[NAME]: what happened; kept: what is safe; do: what to do now

Exit codes: 0 done, 1 a bug, then the `exit_code` of each class below, 75 stopped and resumable
(EX_TEMPFAIL of sysexits.h), 130 and 143 when a second signal ends the run at once.
"""

DONE = 0
BUG = 1
STOPPED_RESUMABLE = 75


class OutpaceError(Exception):
    """A fault with a name that scripts can match, a remedy, and the process's exit code."""

    exit_code = BUG

    def __init__(self, name: str, what: str, *, do: str = "", kept: str = "") -> None:
        super().__init__(what)
        self.name, self.what, self.do, self.kept = name, what, do, kept

    def __str__(self) -> str:
        parts = [f"error[{self.name}]: {self.what}"]
        if self.kept:
            parts.append(f"kept: {self.kept}")
        if self.do:
            parts.append(f"do: {self.do}")
        return "; ".join(parts)


class UsageError(OutpaceError):
    """A flag, a recipe or a combination of them that cannot be run."""

    exit_code = 2


class DataError(OutpaceError):
    """Text, shards or questions that are missing, damaged or too few."""

    exit_code = 3


class CheckpointError(OutpaceError):
    """A checkpoint that is damaged, or does not belong to what was asked."""

    exit_code = 4


class StorageError(OutpaceError):
    """A disk that is full, read-only or failing."""

    exit_code = 5


class NumericsError(OutpaceError):
    """Loss or gradients that are no longer numbers."""

    exit_code = 6


class OutOfMemory(OutpaceError):
    """The model and micro-batch do not fit."""

    exit_code = 7


class RunInUse(OutpaceError):
    """Another process holds the run folder."""

    exit_code = 8


class PeerLost(OutpaceError):
    """A rank of the process group died or fell silent."""

    exit_code = 9


class NetworkError(OutpaceError):
    """A download that could not be made."""

    exit_code = 10


class NotMet(OutpaceError):
    """What a command was told to require is not so."""

    exit_code = 11


class Stopped(OutpaceError):
    """Work that a signal or its time ended, and that the same command goes on with."""

    exit_code = STOPPED_RESUMABLE
