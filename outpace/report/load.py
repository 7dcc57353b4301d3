"""Read a run folder. Missing, incomplete or damaged parts are reported and left out, never
fatal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.core.errors import UsageError
from outpace.core.files import JsonObject, parse_object
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import read_state

MOST_RECORDS = 100_000
"""Most records kept of one file; more than a figure can show."""
LONGEST_LINE = 1 << 20
"""In characters; the longest records, samples, have some thousands."""


@dataclass(frozen=True)
class Run:
    """The contents of one run folder's files, unchanged."""

    name: str
    root: Path
    status: JsonObject
    plan_file: JsonObject
    """The whole plan.json."""
    metrics: list[JsonObject]
    """In order of steps, each step once."""
    evals: list[JsonObject]
    samples: list[JsonObject]
    events: list[JsonObject]
    config_toml: str
    problems: tuple[str, ...]
    """One sentence for each part that could not be read."""
    verdict: JsonObject = field(default_factory=dict)
    """The comparison with another model; empty if none was made."""

    @property
    def plan(self) -> JsonObject:
        return part(self.plan_file, "plan")

    @property
    def machine(self) -> JsonObject:
        return part(self.plan_file, "machine")

    @property
    def versions(self) -> JsonObject:
        return part(self.plan_file, "versions")

    @property
    def dataset(self) -> JsonObject:
        return part(self.plan_file, "dataset")

    @property
    def choices(self) -> list[JsonObject]:
        return [c for c in items(self.plan_file, "choices") if isinstance(c, dict)]

    @property
    def warnings(self) -> list[str]:
        return [str(w) for w in items(self.plan_file, "warnings")]

    def task(self, name: str) -> list[JsonObject]:
        """The evaluations of one task, in the order in which they were made."""
        return [r for r in self.evals if r.get("task") == name]


def load_runs(roots: Sequence[Path]) -> list[Run]:
    """Read every folder. UsageError NO-RUN if there is none, NOT-A-RUN if one is not a run
    folder."""
    if not roots:
        raise UsageError("NO-RUN", "no run folder named", do="outpace report runs/NAME")
    resolved = list(dict.fromkeys(_resolve(root) for root in roots))
    names = [root.name for root in resolved]
    clash = len(set(names)) < len(names)
    return [
        load_run(root, f"{root.parent.name}/{root.name}" if clash else root.name)
        for root in resolved
    ]


def load_run(root: Path, name: str = "") -> Run:
    """Read one run folder, which may be live, half-written or from an older version."""
    folder = RunFolder(root)
    signs = (folder.config, folder.plan, folder.status, folder.metrics)
    if not any(path.is_file() for path in signs):
        what = "is not a run folder" if root.is_dir() else "is not a folder"
        if not root.exists():
            what = "does not exist"
        raise UsageError(
            "NOT-A-RUN",
            f"{root} {what}: no {', '.join(path.name for path in signs)} in it",
            do="name the folder that training printed, such as runs/NAME",
        )
    problems: list[str] = []
    metrics = {
        r["step"]: r for r in _lines(folder.metrics, problems) if number(r, "step") is not None
    }
    status = _object(folder.status, problems)
    if status.get("state") == "running":  # unless its process has died without recording it
        status |= {k: v for k, v in read_state(folder).items() if k in ("state", "reason")}
    return Run(
        name=name or _resolve(root).name,
        root=root,
        status=status,
        plan_file=_object(folder.plan, problems),
        metrics=[metrics[step] for step in sorted(metrics)],
        evals=_lines(folder.evals, problems),
        samples=_lines(folder.samples, problems),
        events=_lines(folder.events, problems),
        config_toml=_text(folder.config, problems),
        verdict=_object(folder.verdict, problems),
        problems=tuple(problems),
    )


def number(record: JsonObject, key: str) -> float | None:
    """`record[key]` if it is a finite number, else None."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond a float's range
        return None


def series(records: Sequence[JsonObject], x: str, y: str) -> tuple[list[float], list[float]]:
    """The points that have both `x` and `y`."""
    pairs = [(number(r, x), number(r, y)) for r in records]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a for a, _ in known], [b for _, b in known]


def part(record: JsonObject, key: str) -> JsonObject:
    """`record[key]` if it is an object, else an empty one."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def items(record: JsonObject, key: str) -> list[Any]:
    """`record[key]` if it is a list, else an empty one."""
    value = record.get(key)
    return value if isinstance(value, list) else []


def _resolve(root: Path) -> Path:
    # Resolved so that `.` and `runs/a/` have a name, and a run given twice is shown once.
    try:
        return root.resolve()
    except (OSError, RuntimeError):  # a symlink loop
        return root.absolute()


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror or error}.")
        return ""


def _object(path: Path, problems: list[str]) -> JsonObject:
    text = _text(path, problems)
    if not text:
        return {}
    if (value := parse_object(text)) is not None:
        return value
    problems.append(f"{path.name} is incomplete or damaged; its contents are left out.")
    return {}


def _lines(path: Path, problems: list[str]) -> list[JsonObject]:
    """The records of a JSON-lines file; if it has very many, evenly spread ones and the last.
    Records left out are reported in `problems`."""
    kept: list[JsonObject] = []
    last: JsonObject | None = None
    count, dropped, stride = 0, 0, 1
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(LONGEST_LINE):  # a limit, if the file is one endless line
                record = parse_object(line)
                if record is None:
                    dropped += bool(line.strip())
                    continue
                if count % stride == 0:
                    kept.append(record)
                count, last = count + 1, record
                if len(kept) == MOST_RECORDS:
                    kept, stride = kept[::2], 2 * stride
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror or error}.")
    if last is not None and kept[-1] is not last:
        kept.append(last)
    if stride > 1:
        problems.append(f"Of the {count:,} records in {path.name}, only one in {stride} is shown.")
    if dropped:
        lines = "a line that is" if dropped == 1 else f"{dropped:,} lines that are"
        problems.append(f"{path.name} has {lines} incomplete or damaged, and left out.")
    return kept
