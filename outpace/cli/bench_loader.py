"""`outpace bench loader`: batches from the cache, and their order, beside nanoGPT's get_batch."""

from dataclasses import dataclass
from pathlib import Path

from outpace.config.check import Range, check_ranges
from outpace.config.load import parse_flags
from outpace.core.log import say

LOADER_RANGES = {
    "tokens": Range(10_000, 10**10),
    "shards": Range(1, 1000),
    "micro_batch_size": Range(1, 4096),
    "context": Range(1, 65_536),
    "rounds": Range(1, 1000),
    "seconds": Range(0, 3600, above=True),
}


@dataclass
class Options:
    """Our loader, the order of the data alone, and nanoGPT's get_batch, in turns on one thread."""

    nanogpt: Path | None = None
    """A checkout of karpathy/nanoGPT, whose get_batch is timed too."""
    tokens: int = 100_000_000
    """Random tokens to read, 2 bytes each, in a temporary folder; twice that beside nanoGPT."""
    shards: int = 4
    """Files they stand in."""
    micro_batch_size: int = 64
    """Sequences in a batch (B)."""
    context: int = 1024
    """Tokens of a sequence (T)."""
    rounds: int = 10
    """Turns of each."""
    seconds: float = 1.0
    """Length of a turn."""
    output: Path | None = None
    """Result file. Default: results/loader.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench loader")
    check_ranges(options, LOADER_RANGES, "outpace bench loader")

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
