"""A run's state as seen from outside, from its files and whether its process is still alive. Only
reads, and may read while the run writes.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outpace.core.errors import UsageError
from outpace.core.files import JsonObject, parse_object
from outpace.core.runfolder import RUNS, RunFolder, boot_id

STATES = ("running", "finished", "stopped", "failed")
"""The states STATUS.json may contain."""
INTERRUPTED = "interrupted"
"""How a `running` run without a process is reported."""
TAIL_BYTES = 1 << 16


def read_state(folder: RunFolder) -> JsonObject:
    """STATUS.json, with `state` set to interrupted if the process is gone without having written
    its end, and

        held                whether a process holds the run's lock
        last_logged_step    of metrics.jsonl, with `tokens_per_second` and `loss` of that record
        last_record_age_s   seconds since metrics.jsonl was last written
        max_steps           of plan.json

    each only if known. UsageError NOT-A-RUN for a folder without any sign of a run.
    """
    status = _status(folder)
    held = is_held(folder, status)
    if not held:
        status = _status(folder)  # it may have ended properly between the two reads
    if status is None:
        if not (held or folder.plan.is_file() or folder.metrics.is_file()):
            raise no_run(folder, folder.status)
        status = {"state": "running", "reason": "it has no readable STATUS.json"}
    if status["state"] == "running" and not held:
        status |= {"state": INTERRUPTED, "reason": _why_gone(status)}
        if any(folder.checkpoints.glob("step-*")):
            status["reason"] += "; the same command continues it"
        elif status.get("last_verified_checkpoint") is None:
            status["reason"] += " before the first checkpoint; the same command starts again"
    status["held"] = held
    if status.get("resumable") and not any(folder.checkpoints.glob("step-*")):
        status["resumable"] = False  # the checkpoints were deleted since
    if found := last_record(folder.metrics):
        record, age_s = found
        status["last_logged_step"] = record.get("step")
        status["last_record_age_s"] = round(age_s, 1)
        status |= {k: record[k] for k in ("tokens_per_second", "loss") if k in record}
    plan = _object(folder.plan).get("plan")
    if isinstance(plan, dict) and "max_steps" in plan:
        status["max_steps"] = plan["max_steps"]
    return status


def acknowledged(run: RunFolder) -> str | None:
    """The last checkpoint that STATUS.json says was committed."""
    try:
        name = read_state(run).get("last_verified_checkpoint")
    except UsageError:
        return None
    return name if isinstance(name, str) else None


def is_held(folder: RunFolder, status: JsonObject | None = None) -> bool:
    """Whether a process holds the run's lock. If the file system cannot tell: whether the process
    named in `status` is alive on this machine."""
    try:  # read-only, so that it works on another user's folder, too
        fd = os.open(folder.root / ".lock", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return _is_alive(status or {})
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two may ask at once
    except BlockingIOError:
        return True
    except OSError:
        return _is_alive(status or {})
    finally:
        os.close(fd)
    return False


def runs_begun() -> Iterator[tuple[RunFolder, Any]]:
    """The runs in `RUNS`, sorted by name, each with the command line that last started it, if its
    plan.json records one."""
    for plan in sorted(RUNS.glob("*/plan.json")):
        yield RunFolder(plan.parent), _object(plan).get("command")


def last_record(path: Path) -> tuple[JsonObject, float] | None:
    """The last whole record of a JSON-lines file and the file's age in seconds; reads only the end
    of the file. None if there is no record."""
    try:
        with open(path, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(max(0, size - TAIL_BYTES))
            lines = f.read().splitlines()
            age_s = max(0.0, time.time() - os.fstat(f.fileno()).st_mtime)
    except OSError:
        return None
    for line in reversed(lines):
        if (record := parse_object(line)) is not None:
            return record, age_s
    return None


def last_step(state: JsonObject) -> int:
    """The last step known to be done."""
    known = [state.get("last_step")]
    if state["state"] in ("running", "interrupted", "failed"):
        known.append(state.get("last_logged_step"))
    return max((step for step in known if isinstance(step, int)), default=0)


def _status(folder: RunFolder) -> JsonObject | None:
    status = _object(folder.status)
    return status if status.get("state") in STATES else None


def _object(path: Path) -> JsonObject:
    try:
        return parse_object(path.read_bytes()) or {}
    except OSError:
        return {}


def _why_gone(status: JsonObject) -> str:
    """Why a run that says it is running may have no process."""
    pid, host, boot = (status.get(key) for key in ("pid", "host", "boot_id"))
    if host not in (None, socket.gethostname()):
        return f"its process {pid} on {host} is gone"
    if boot not in (None, boot_id()):
        return "the machine was restarted"
    if pid is None:
        return "its process is gone"
    return f"its process {pid} was killed (kill -9, or the system ran out of memory)"


def _is_alive(status: JsonObject) -> bool:
    pid = status.get("pid")
    if not isinstance(pid, int) or status.get("host") != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return status.get("boot_id") in (None, boot_id())


def no_run(folder: RunFolder, lacks: Path) -> UsageError:
    """The error for a folder that lacks one of the files every run has."""
    return UsageError(
        "NOT-A-RUN",
        f"{folder.root} is not a run folder (no readable {lacks.name})",
        do="name the folder that training printed, such as runs/NAME",
    )
