"""`outpace bench loader`: batches from the cache, and their order, beside nanoGPT's get_batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.log import say


@dataclass
class Options:
    """Time outpace's loader, its data order alone, and nanoGPT's get_batch in turns on a thread."""

    nanogpt: Path | None = None
    """A checkout of karpathy/nanoGPT, whose get_batch is timed too."""
    tokens: Annotated[int, Range(10_000, 10**10)] = 100_000_000
    """Random tokens to read, 2 bytes each, in a temporary folder; twice that beside nanoGPT."""
    shards: Annotated[int, Range(1, 1000)] = 4
    """Number of files they are stored in."""
    micro_batch_size: Annotated[int, Range(1, 4096)] = 64
    """Sequences in a batch (B)."""
    context: Annotated[int, Range(1, 65_536)] = 1024
    """Tokens of a sequence (T)."""
    rounds: Annotated[int, Range(1, 1000)] = 10
    """Number of turns of each."""
    seconds: Annotated[float, Range(0, 3600, above=True)] = 1.0
    """Length of a turn."""
    output: Path | None = None
    """Result file. Default: results/loader.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench loader")

    from outpace.bench.loader import Reading, measure_loader

    reading = Reading(
        options.tokens,
        options.shards,
        options.micro_batch_size,
        options.context,
        options.rounds,
        options.seconds,
    )
    say(str(measure_loader(reading, options.nanogpt, options.output)))
    return 0
