"""`--decontaminate`: leaving out documents that contain thirteen consecutive words of an
evaluation.

N-grams are found by hash and confirmed word for word (ngrams.py). Thirteen words are what GPT-3
counted as an overlap (Brown et al. 2020, appendix C). removed.jsonl lists the words and the
question.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError
from outpace.core.files import sha256_file
from outpace.data.ngrams import NgramIndex


@dataclass(frozen=True)
class Benchmark:
    """An evaluation's questions, in a file that every worker can read."""

    name: str
    path: str
    sha256: str

    @classmethod
    def of(cls, name: str, path: Path) -> "Benchmark":
        """DataError if the file cannot be read."""
        try:
            return cls(name, str(path), sha256_file(path))
        except OSError as error:
            raise DataError(
                "NO-INPUT",
                f"cannot read the questions of {name}, {path}: {error.strerror or error}",
                do=f"--decontaminate {name}=FILE.jsonl",
            ) from error

    def passages(self) -> Iterator[tuple[str, str]]:
        """(question, text): each context with each of its endings for HellaSwag's file, the field
        `text` for any other .jsonl, every line of a .txt. Blank lines are skipped. DataError for
        anything else."""
        number = 0
        try:
            with open(self.path, encoding="utf-8") as f:
                for number, line in enumerate(f):
                    if not line.strip():
                        continue
                    if not self.path.endswith((".jsonl", ".json")):
                        yield f"{self.name} {number}", line
                        continue
                    record = json.loads(line)
                    # WikiHow and ActivityNet are numbered separately, so `ind` alone is ambiguous.
                    part = str(record.get("source_id") or "").partition("~")[0]
                    question = " ".join(f"{self.name} {part} {record.get('ind', number)}".split())
                    for text in _texts(record):
                        yield question, text
        except UnicodeDecodeError as error:
            raise DataError(
                "BAD-INPUT", f"{self.path} is not UTF-8 text ({error})", do="convert it to UTF-8"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "BAD-INPUT",
                f"{self.path}: line {number + 1} is not a question ({error})",
                do="give JSON lines with the field text, or HellaSwag's own file",
            ) from error


def _texts(record: dict[str, Any]) -> list[str]:
    if "endings" in record:
        return [f"{record['ctx']} {ending}" for ending in record["endings"]]
    return [str(record["text"])]


@functools.lru_cache(maxsize=1)
def index_of(benchmarks: tuple[Benchmark, ...]) -> NgramIndex:
    """The n-grams of all benchmarks, built once per process."""
    for benchmark in benchmarks:
        if sha256_file(Path(benchmark.path)) != benchmark.sha256:
            raise DataError("INPUT-CHANGED", f"{benchmark.path} changed", do="run again")
    return NgramIndex(passage for b in benchmarks for passage in b.passages())


def overlaps(benchmarks: tuple[Benchmark, ...], texts: list[str]) -> dict[int, str]:
    """The numbers of the overlapping texts, each with a description."""
    index = index_of(benchmarks)
    found = index.find_in(texts)
    return {
        n: f"{len(ngrams)} n-grams of {index.names[int(index.holders(ngrams)[0])]}: "
        f"{index.ngram(int(ngrams[0]))}"
        for n, ngrams in enumerate(found)
        if len(ngrams)
    }
