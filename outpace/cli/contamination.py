"""`outpace contamination DATASET`: which questions of a benchmark occur in a training set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.config.schema import HELLASWAG_PATH
from outpace.core.console import bar
from outpace.core.files import check_writable, replace_json
from outpace.core.log import say, show, show_json


@dataclass
class Options:
    """Find every question that shares 13 words in a row, in the question or its endings, with a
    prepared dataset. Case, punctuation and spacing do not matter. `outpace verdict` and `outpace
    evaluate` then also give the score without these questions."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """A prepared dataset: its folder, or its name below data/."""
    task: str = "hellaswag"
    """hellaswag, or another task of `outpace evaluate`."""
    split: Literal["train", "val"] = "train"
    """Which part of the dataset to read."""
    words: Annotated[int, Range(2, 1000)] = 13
    """How many words in a row make an overlap (GPT-3's number)."""
    common: Annotated[float, Range(0, 10**9)] = 10.0
    """Ignore stock phrases: runs of words in more than this many documents per 10^9 characters."""
    hellaswag_path: Path = Path(HELLASWAG_PATH)
    """The questions, as `outpace prepare hellaswag` leaves them."""
    task_data: str = "data/tasks"
    """Rows of the other tasks: a folder, a file, or `hub`, as for `outpace evaluate`."""
    output: Path | None = None
    """The record to write. Default: contamination-TASK.json in the dataset's folder, for the split
    val contamination-TASK-val.json, which no verdict reads."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace contamination")

    from outpace.data.contamination import contamination
    from outpace.data.ngrams import NgramIndex
    from outpace.evals import contamination as records
    from outpace.tools.questions import questions
    from outpace.train.corpus import open_named

    dataset = open_named(options.dataset)
    output = options.output or dataset.folder / records.file_name(options.task, options.split)
    asked = questions(
        [options.task],
        ["completion"],
        hellaswag_path=options.hellaswag_path,
        task_data=options.task_data,
    )
    task, _, items = next(asked)
    check_writable(output)  # a corpus takes hours to read
    index = NgramIndex(records.passages(items), options.words)
    with bar(f"reading {dataset.name}") as progress:
        found = contamination(
            dataset,
            options.split,
            index,
            most_documents_per_gb=options.common,
            progress=progress,
        )
    record = {"format": records.FORMAT, "task": task.name, **found}
    replace_json(output, record)
    if options.json:
        show_json(record)
    else:
        for line in _lines(record):
            show(line)
        say(str(output))
    return 0


def _lines(record: dict[str, Any]) -> list[str]:
    hits, n = record["contaminated"], record["questions"]
    lines = [
        f"{record['task']} in {record['dataset']} ({record['split']}, {record['documents']:,} "
        f"documents): {len(hits):,} of {n:,} questions share {record['n']} words in a row with it "
        f"({len(hits) / max(1, n):.2%})"
    ]
    if short := len(record["too_short"]):
        lines.append(f"{short:,} questions have fewer words, and cannot be found")
    if common := record["common_ngrams"]:
        lines.append(f"{common:,} stock phrases left out")
    most = sorted(hits.items(), key=lambda item: -item[1]["documents"])[:5]
    lines += [
        f"  {name}: {hit['documents']:,} documents, first {hit['first'][0]:,}: {hit['words']}"
        for name, hit in most
    ]
    return lines
