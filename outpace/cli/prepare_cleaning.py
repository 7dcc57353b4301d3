"""Flags of `outpace prepare` about which documents are kept, and on which side of the split."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from outpace.config.ranges import Range
from outpace.core.errors import DataError
from outpace.core.log import note
from outpace.core.registry import nearest

if TYPE_CHECKING:
    from outpace.data.decontaminate import Benchmark

LOOKED_FOR = ("data/{name}/{name}_val.jsonl", "data/{name}/{name}.jsonl", "{name}.jsonl")
"""Where an evaluation's questions are looked for."""


@dataclass
class CleaningOptions:
    """Flags about documents to leave out. Empty documents and exact copies always are."""

    limit_documents: Annotated[int | None, Range(1, 10**12)] = None
    """Stop after this many documents."""
    filter: tuple[str, ...] = ()
    """Conditions that a document must meet, such as 'characters>=200', 'words<100000',
    'language_score>=0.9', 'language==en'; names other than characters and words are columns."""
    near_duplicates: bool = False
    """Leave out documents that mostly repeat earlier ones (MinHash of runs of five words). Excerpts
    of earlier documents are found from about 800 words on."""
    decontaminate: tuple[str, ...] = ()
    """Leave out documents that share thirteen words in a row with an evaluation: hellaswag, or
    NAME=FILE (.jsonl with the field text, .txt)."""
    split: Literal["hash", "nanogpt"] = "hash"
    """Which documents are validation. hash: by a hash of their text.
    nanogpt: nanoGPT's own, by its seed; keeps every document, even copies and empty ones."""
    tokenizer_engine: Literal["auto", "fastokens", "tiktoken"] = "auto"
    """Tokenizer library; both give the same ids. auto: fastokens if it is installed."""


def benchmarks(names: tuple[str, ...], output: Path) -> "tuple[Benchmark, ...]":
    """The evaluations named, with their files. DataError if one cannot be found."""
    from outpace.data.decontaminate import Benchmark, index_of

    found = []
    for given in (part for name in names for part in name.split(",") if part):
        name, _, file = given.partition("=")
        path = Path(file) if file else _find(name, output)
        found.append(Benchmark.of(name, path))
    if found and (short := len(index_of(tuple(found)).too_short)):
        note(f"{short:,} questions have no thirteen words in a row, and so cannot be found")
    return tuple(found)


def _find(name: str, output: Path) -> Path:
    for place in LOOKED_FOR:
        if (path := Path(place.format(name=name))).exists():
            return path
    if name != "hellaswag":
        raise DataError(
            "NO-INPUT",
            f"no questions of {name!r}{nearest(name, ['hellaswag'])} in data/{name}",
            do=f"--decontaminate {name}=FILE.jsonl",
        )
    from outpace.evals.tasks import hellaswag_source

    return hellaswag_source.prepare(output.parent / "hellaswag")
