"""The passages of a benchmark to look for in a corpus, and the record of those found."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from outpace.core.errors import DataError
from outpace.core.files import JsonObject
from outpace.evals import answers
from outpace.evals.answers import question_name
from outpace.evals.task import Item, share

FORMAT = 1


def passages(items: Sequence[Item]) -> Iterator[tuple[str, str]]:
    """(name, text) of each question with each of its endings, as a document would have them:
    without the "Question:" and "Answer:" of PIQA's and ARC's prompts."""
    for item in items:
        name = question_name(item.keys)
        contexts = (
            item.contexts if len(item.contexts) > 1 else item.contexts * len(item.continuations)
        )
        for context, continuation in zip(contexts, item.continuations, strict=True):
            bare = context.removeprefix("Question: ").removesuffix("\nAnswer:")
            yield name, bare + continuation


@dataclass(frozen=True)
class Contamination:
    """The questions of a task that occur in a dataset."""

    task: str
    dataset: str
    fingerprint: str
    questions: frozenset[str]
    """Names of those found."""

    def clean(self, examples: Sequence[JsonObject]) -> JsonObject:
        """Accuracies over the examples of all other questions, if there are any."""
        (kept,) = answers.collect(examples)
        kept = answers.without(kept, self.questions)
        record: JsonObject = {"dataset": self.dataset, "questions": len(kept)}
        for metric, right in kept.right.items() if len(kept) else ():
            record |= share(right.tolist(), metric)
        return record


def file_name(task: str, split: str = "train") -> str:
    """Name of the record in the dataset's folder."""
    return f"contamination-{task}{'' if split == 'train' else f'-{split}'}.json"


def read(path: Path) -> Contamination:
    """Read a record of `outpace contamination`; DataError if it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r} is not {FORMAT}")
        return Contamination(
            task=str(record["task"]),
            dataset=str(record["dataset"]),
            fingerprint=str(record["fingerprint"]),
            questions=frozenset(map(str, record["contaminated"])),
        )
    except OSError as error:
        raise DataError("CONTAMINATION", f"cannot read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            "CONTAMINATION",
            f"{path} is not a record of contamination ({type(error).__name__}: {error})",
            do="outpace contamination DATASET",
        ) from error
