"""One process at a time in a folder: a lock of the kernel's, which a process that is killed lets go
of, wherever it ran.
"""

import errno
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from outpace.core.log import warn

NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers."""
FOR_EVER = -1.0
"""Patience that does not end."""


def take(path: Path, patience_s: float) -> FileLock:
    """The lock, taken; filelock.Timeout if another process holds it. A file system without locks
    is warned of: a lock that is a file of its own, filelock's way out since 4.0, would outlive a
    kill."""
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
    warn(f"[NO-LOCK] {folder} is on a file system without locks: nothing keeps others out")
