"""`outpace bench prepare`: text to tokens, against nanoGPT's own script on the same documents."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.errors import UsageError
from outpace.core.log import say

FOLDER = "prepare"
"""Folder inside the scratch folder. It must be new, because it is emptied between races."""


@dataclass
class Options:
    """Text to tokens by outpace and by nanoGPT's data/openwebtext/prepare.py, in turns on the same
    documents: time, memory, temporary disk, and whether train.bin and val.bin are the same."""

    nanogpt: Path | None = None
    """A checkout of nanoGPT."""
    nanogpt_python: str = sys.executable
    """The Python to run nanoGPT with; needs datasets, tiktoken and tqdm."""
    input: tuple[str, ...] = ()
    """Text to cut documents from: paths, globs or folders, as for prepare files."""
    megabytes: Annotated[float, Range(0, 1e6, above=True)] = 100.0
    """MB of text in the first race."""
    repeats: Annotated[int, Range(1, 10_000)] = 10
    """The second race repeats that text this many times; 1: no second race."""
    rounds: Annotated[int, Range(1, 100)] = 2
    """Runs of each race; the median counts."""
    workers: Annotated[int, Range(1, 1024)] = 2
    """Number of threads (outpace) and processes (nanoGPT)."""
    scratch: Path | None = None
    """Folder in which `prepare/` is made, for the corpus and the results. Default: a temporary
    one."""
    output: Path | None = None
    """Result file. Default: results/prepare-cpu.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench prepare")
    if options.nanogpt is None or not options.input:
        raise UsageError(
            "NO-INPUT", "--nanogpt and --input are needed", do="outpace bench prepare --help"
        )
    if options.scratch and (options.scratch / FOLDER).exists():
        raise UsageError(
            "SCRATCH-USED",
            f"{options.scratch / FOLDER} already exists",
            do="name another --scratch",
        )
    from outpace.bench.prepare import Race, race
    from outpace.bench.result import check_writable, write_result
    from outpace.train.environment import commit_of

    check_writable("prepare-cpu", options.output)
    how = Race(options.nanogpt, options.nanogpt_python, list(options.input), options.workers)
    sizes = {"once": 1, "repeated": options.repeats}
    races: dict[str, dict[str, Any]] = {}
    commit = commit_of(options.nanogpt)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.scratch or Path(temporary)).resolve() / FOLDER
        for name, repeats in sizes.items():
            if name == "once" or repeats > 1:
                races[name] = race(how, scratch, options.megabytes, repeats, options.rounds)
                # After each race, so that an interrupted call leaves what it has measured.
                body = {"nanogpt_commit": commit, "races": races}
                path = write_result("prepare-cpu", "cpu", body, options.output)
    for found in races.values():
        say(
            f"{found['text_bytes'] / 1e6:,.0f} MB of text: "
            + ", ".join(f"{n} {x:.1f} times nanoGPT" for n, x in found["times_nanogpt"].items())
            + ("" if found["export"]["byte_identical_to_nanogpt"] else "; NOT the same bytes")
        )
    say(f"written to {path}")
    return 0
