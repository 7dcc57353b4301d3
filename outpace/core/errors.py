"""Errors a user can cause, each one line with its exit code. Only a bug gets a traceback.

    error[NAME]: what happened; kept: what is safe; do: what to do now

Exit codes: 0 done, 1 a bug, then the `exit_code` of each class below, 75 stopped and resumable
(EX_TEMPFAIL of sysexits.h), 130 and 143 when a second signal ends the run at once.
"""

DONE = 0
BUG = 1
STOPPED_RESUMABLE = 75


class OutpaceError(Exception):
    """An error with a name that scripts can match, a remedy, and the exit code of the process."""

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
    """A checkpoint that is damaged, or does not match what was asked for."""

    exit_code = 4


class StorageError(OutpaceError):
    """A disk that is full, read-only or failing."""

    exit_code = 5


class NumericsError(OutpaceError):
    """A loss or gradients that are not finite."""

    exit_code = 6


class OutOfMemory(OutpaceError):
    """The model and micro-batch do not fit."""

    exit_code = 7


class RunInUse(OutpaceError):
    """Another process holds the run folder."""

    exit_code = 8


class PeerLost(OutpaceError):
    """A rank of the process group died or stopped answering."""

    exit_code = 9


class NetworkError(OutpaceError):
    """A download that failed."""

    exit_code = 10


class NotMet(OutpaceError):
    """A condition that a command was told to require does not hold."""

    exit_code = 11


class Stopped(OutpaceError):
    """Work ended by a signal or its time limit, which the same command continues."""

    exit_code = STOPPED_RESUMABLE
