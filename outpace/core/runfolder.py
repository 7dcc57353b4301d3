"""Every path of a run, in one place: the on-disk contract for reports and tools.

config.toml      what was asked for, with who set each value
plan.json        what happens and why; the machine; versions
STATUS.json      atomically replaced: state, exit code, last step, resumable
metrics.jsonl    one record per logged step
evals.jsonl      one record per evaluation
samples.jsonl    generated text
events.jsonl     starts, saves, fall-backs, stops
incidents/       batches of steps whose numbers were bad
checkpoints/     step-00001000/...
verdict.json     the latest verdict: whether it beats another model
report.html
comparison.html  this run beside others
"""

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from outpace.core import locks
from outpace.core.errors import RunInUse, StorageError
from outpace.core.files import (
    JsonObject,
    append_json_line,
    parse_object,
    replace_json,
    replace_lines,
)
from outpace.core.log import warn

WARN_EVERY_S = 60.0
LOCK_PATIENCE_S = 0.2
"""`outpace status` holds the lock for a moment to see who has it."""
_warned_at: dict[Path, float] = {}
RUNS = Path("runs")
"""Parent of a run's folder unless `--run_dir` is given."""
RUN_FORMAT = 1
"""Version of the layout above; written into plan.json and STATUS.json."""


class RunFolder:
    """Paths below one run's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.plan = root / "plan.json"
        self.status = root / "STATUS.json"
        self.metrics = root / "metrics.jsonl"
        self.evals = root / "evals.jsonl"
        self.samples = root / "samples.jsonl"
        self.events = root / "events.jsonl"
        self.incidents = root / "incidents"
        self.checkpoints = root / "checkpoints"
        self.verdict = root / "verdict.json"
        self.report = root / "report.html"
        self.comparison = root / "comparison.html"

    def others(self) -> list[str]:
        """What the folder already contains, if no run was started in it yet."""
        if self.config.exists() or not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if not p.name.startswith("."))

    def create(self) -> None:
        """Make the folder. StorageError if that fails."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                "RUN-DIR",
                f"cannot make the run folder {self.root}: {error.strerror or error}",
                do="choose a writable folder with --run_dir",
            ) from error

    def lock(self) -> FileLock:
        """Take the run's lock, which is released when the process ends, however it ends. RunInUse
        if held."""
        try:
            return locks.take(self.root / ".lock", LOCK_PATIENCE_S)
        except Timeout as error:
            raise RunInUse(
                "RUN-IN-USE",
                f"another process is training in {self.root}{_holder(self.status)}",
                do="wait for it, stop it, or choose another --run_dir",
            ) from error

    def write_status(self, state: str, *, code: int | None = None, **fields: Any) -> None:
        """Replace STATUS.json. `state` is running, finished, stopped or failed."""
        record = {
            "format": RUN_FORMAT,
            "state": state,
            "code": code,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "boot_id": boot_id(),
            "time": now(),
            "degraded": self.root in _warned_at,
            **fields,
        }
        with self._never_fatal(self.status):
            replace_json(self.status, record)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to events.jsonl."""
        self.record(self.events, {"time": now(), "event": kind, **fields})

    def record(self, path: Path, record: JsonObject) -> None:
        """Append one line to one of the files above."""
        with self._never_fatal(path):
            append_json_line(path, record)

    @contextlib.contextmanager
    def _never_fatal(self, path: Path) -> Iterator[None]:
        """If a record cannot be written, warn at most once a minute and continue: only a checkpoint
        that cannot be written stops a run."""
        try:
            yield
        except (OSError, StorageError) as error:
            last = _warned_at.get(self.root)
            if last is None or time.monotonic() - last >= WARN_EVERY_S:
                _warned_at[self.root] = time.monotonic()
                reason = getattr(error, "strerror", None) or str(error)
                warn(f"[DEGRADED] {path} is not written ({reason}); training continues")

    def forget_after(self, step: int) -> None:
        """Drop records of steps after `step`, and damaged lines, so that each step is recorded once
        although a resume repeats it."""
        for path in (self.metrics, self.evals, self.samples):
            if not path.is_file():
                continue
            # Line by line: a long run has hundreds of megabytes of them.
            with self._never_fatal(path), open(path, "rb") as f:
                if not all(_is_until(step, line) for line in f):
                    f.seek(0)
                    replace_lines(path, (line for line in f if _is_until(step, line)))


def _is_until(step: int, line: bytes) -> bool:
    record = parse_object(line)
    recorded = None if record is None else record.get("step", 0)
    return isinstance(recorded, int) and recorded <= step


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def boot_id() -> str | None:
    """An ID that changes when the machine reboots; None where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _holder(status: Path) -> str:
    try:
        record = json.loads(status.read_text(encoding="utf-8"))
        return f" (pid {record['pid']} on {record['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
