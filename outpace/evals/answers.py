"""A model's answers, question by question: from an evaluation, or a file of `--details`."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outpace.core.errors import DataError
from outpace.core.files import JsonObject

Bools = npt.NDArray[np.bool_]
PREDICTION = "pred"


@dataclass(frozen=True)
class Answers:
    """A model's answers to a task under a protocol; lists and arrays have one entry per
    question."""

    task: str
    protocol: str
    names: list[str]
    """Identifies each question, the same for every model."""
    labels: list[int]
    sources: list[str]
    """The video or article that a question is about; its name where it has none."""
    right: dict[str, Bools]
    """By metric: acc, acc_norm, ..."""

    def __len__(self) -> int:
        return len(self.names)

    def at(self, places: Sequence[int]) -> "Answers":
        """The answers at these places."""
        chosen = np.array(places, np.int64)
        return Answers(
            self.task,
            self.protocol,
            [self.names[i] for i in places],
            [self.labels[i] for i in places],
            [self.sources[i] for i in places],
            {metric: right[chosen] for metric, right in self.right.items()},
        )


def question_name(keys: Mapping[str, Any]) -> str:
    """The name of a question, from the keys of its record. HellaSwag's `ind` is not unique: WikiHow
    and ActivityNet number their questions separately, and 433 numbers occur twice."""
    if "row" in keys:
        return f"row {keys['row']}"
    return f"{str(keys.get('source_id', '')).partition('~')[0]} {keys['ind']}".strip()


def collect(examples: Iterable[JsonObject]) -> list[Answers]:
    """Records of examples as Answers, one for each task and protocol, in the order of the records.
    ValueError, LookupError or TypeError if one is not the record of an example."""
    groups: dict[tuple[str, str], list[JsonObject]] = {}
    for example in examples:
        key = str(example.get("task", "hellaswag")), str(example.get("protocol", "completion"))
        groups.setdefault(key, []).append(example)
    return [_answers(*key, rows) for key, rows in groups.items()]


def without(answers: Answers, names: Collection[str]) -> Answers:
    """The answers to all other questions."""
    return answers.at([i for i, name in enumerate(answers.names) if name not in names])


def _answers(task: str, protocol: str, rows: Sequence[JsonObject]) -> Answers:
    names = [question_name(row) for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"question {twice!r} of {task}, {protocol}, is there twice")
    labels = [int(row.get("label", 0)) for row in rows]
    if "greedy" in rows[0]:
        right = {"acc": np.array([bool(row["greedy"]) for row in rows])}
    else:
        right = {
            "acc" + key.removeprefix(PREDICTION): np.array(
                [int(row[key]) == label for row, label in zip(rows, labels, strict=True)]
            )
            for key in rows[0]
            if key.startswith(PREDICTION)
        }
    if not right:
        raise ValueError("no prediction in it")
    sources = [str(row.get("source_id") or name) for row, name in zip(rows, names, strict=True)]
    return Answers(task, protocol, names, labels, sources, right)


def read(path: Path) -> list[Answers]:
    """Read a file of `outpace evaluate --details`; DataError if it is not one."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        found = collect([json.loads(line) for line in lines if line.strip()])
        if not found:
            raise ValueError("it is empty")
        return found
    except OSError as error:
        raise DataError("DETAILS", f"cannot read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            "DETAILS",
            f"{path} is not a file of answers ({type(error).__name__}: {error})",
            do="outpace evaluate MODEL --tasks hellaswag --details FILE",
        ) from error
