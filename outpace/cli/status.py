"""`outpace status RUN`: where a run stands; reads only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock, Timeout

from outpace.config.load import parse_flags
from outpace.core.errors import UsageError
from outpace.core.log import show
from outpace.core.runfolder import RunFolder


@dataclass
class Options:
    """Tell a run's state."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace status")
    record = read_status(RunFolder(options.run))
    if options.json:
        show(json.dumps(record, indent=2))
        return 0
    show(f"{options.run}: {record['state']}, step {record.get('last_step')}")
    for key in ("reason", "last_verified_checkpoint", "resumable", "weights_sha256", "time"):
        if record.get(key) is not None:
            show(f"  {key}: {record[key]}")
    return 0


def read_status(folder: RunFolder) -> dict[str, Any]:
    """STATUS.json; a run that says it is running while nobody holds its lock was interrupted."""
    try:
        record = json.loads(folder.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or "state" not in record:
        raise UsageError(
            "NOT-A-RUN",
            f"{folder.root} is not a run folder (no readable STATUS.json)",
            do="name the folder that training printed, such as runs/NAME",
        )
    if record["state"] == "running" and not _held(folder.root / ".lock"):
        record["state"] = "interrupted"
        record["reason"] = "its process is gone; the same command continues it"
    return record


def _held(path: Path) -> bool:
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):  # of a folder that may not be written to we cannot know
        return True
    lock.release()
    return False
