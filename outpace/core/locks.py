"""A lock that admits one process at a time to a folder. The kernel releases it when its process
ends, however it ends.
"""

import errno
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from outpace.core.log import warn

NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors from a file system without locks."""
FOR_EVER = -1.0
"""Wait without a time limit."""


def take(path: Path, patience_s: float) -> FileLock:
    """Take the lock; filelock.Timeout if another process holds it. On a file system without locks
    this only warns: the soft lock (a file) that filelock falls back to since 4.0 would outlive a
    killed process."""
    known = inspect.signature(FileLock.__init__).parameters
    hard: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in known else {}
    lock = FileLock(path, **hard)
    try:
        lock.acquire(timeout=patience_s)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NONE_HERE:
            raise
        _warn(path.parent)
    return lock


@cache
def _warn(folder: Path) -> None:
    warn(f"[NO-LOCK] {folder} is on a file system without locks: nothing keeps other processes out")
