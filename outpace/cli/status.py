"""`outpace status RUN`: where a run stands. Reads only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock, Timeout

from outpace.config.load import parse_flags
from outpace.core.errors import UsageError
from outpace.core.log import say
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
        print(json.dumps(record, indent=2))
        return 0
    say(f"{options.run}: {record['state']}, step {record.get('last_step')}")
    for key in ("reason", "last_verified_checkpoint", "resumable", "weights_sha256", "time"):
        if record.get(key) is not None:
            say(f"  {key}: {record[key]}")
    return 0


def read_status(folder: RunFolder) -> dict[str, Any]:
    """STATUS.json; a run that says it is running while nobody holds its lock was interrupted."""
    try:
        record: dict[str, Any] = json.loads(folder.status.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            "NOT-A-RUN", f"{folder.root} is not a run folder (no readable STATUS.json)"
        ) from error
    if record.get("state") == "running" and not _held(folder.root / ".lock"):
        record["state"] = "interrupted"
        record["reason"] = "its process is gone; the same command continues it"
    return record


def _held(path: Path) -> bool:
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
