"""`outpace bench WHAT`: measurements, each one JSON file."""

from dataclasses import dataclass
from pathlib import Path

from outpace.config.check import RANGES, Range, check_ranges
from outpace.config.load import parse_flags
from outpace.core.errors import UsageError
from outpace.core.log import say
from outpace.core.registry import Registry

BENCHES = Registry(
    "benchmark", {"memory": "outpace.cli.bench:memory", "compare": "outpace.cli.bench:compare"}
)
HELP = """usage: outpace bench WHAT [FLAGS]      (outpace bench WHAT --help for its flags)

  memory     memory of attention against the length of the sequence, per backend
  compare    outpace against a peer's own code, interleaved on this machine
"""

MEMORY_RANGES = {
    "lengths": Range(1, 1_000_000),
    "heads": Range(1, 1000),
    "head_dim": Range(1, 1024),
}
COMPARE_RANGES = {
    "swap_s": Range(0, 86_400, above=True),
    **{
        name: RANGES[name]
        for name in ("max_steps", "n_layer", "n_head", "n_embd", "context", "micro_batch_size")
    },
}


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    code: int = BENCHES.load(argv[0])(argv[1:])
    return code


@dataclass
class MemoryOptions:
    """Peak memory of attention's forward and backward at growing lengths, each in a new process."""

    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Sequence lengths T, in tokens."""
    heads: int = 12
    """Attention heads (H)."""
    head_dim: int = 64
    """Channels of a head (D)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    output: Path | None = None
    """Result file. Default: benchmarks/results/attention-memory-DEVICE.json."""


def memory(argv: list[str]) -> int:
    options: MemoryOptions = parse_flags(MemoryOptions, argv, prog="outpace bench memory")
    check_ranges(options, MEMORY_RANGES, "outpace bench memory")
    if not options.lengths:
        raise UsageError("BAD-VALUE", "--lengths is empty", do="name at least one length")

    from outpace.bench.attention_memory import measure

    measure(options.lengths, options.heads, options.head_dim, options.device, options.output)
    return 0


@dataclass
class CompareOptions:
    """Train the same model on the same tokens with outpace and with a peer, side by side."""

    nanogpt: Path | None = None
    """A checkout of karpathy/nanoGPT."""
    dataset: str = "auto"
    """A prepared dataset, made with the gpt2 tokenizer."""
    max_steps: int = 1200
    """Optimiser steps of both."""
    n_layer: int = 6
    """Layers of the model."""
    n_head: int = 6
    """Attention heads (H)."""
    n_embd: int = 192
    """Channels of the model (C)."""
    context: int = 256
    """Tokens in a sequence (T)."""
    micro_batch_size: int = 8
    """Sequences in a step."""
    swap_s: float = 20.0
    """Seconds after which the two swap their halves of the cores."""
    work: Path = Path("runs/compare-nanogpt")
    """Folder for both runs; must be new."""
    output: Path | None = None
    """Result file. Default: benchmarks/results/compare-nanogpt-cpu.json."""


def compare(argv: list[str]) -> int:
    options: CompareOptions = parse_flags(CompareOptions, argv, prog="outpace bench compare")
    check_ranges(options, COMPARE_RANGES, "outpace bench compare")
    if options.nanogpt is None:
        raise UsageError("NO-PEER", "no peer was named", do="add --nanogpt CHECKOUT")

    from outpace.bench.compare import Settings, compare_nanogpt
    from outpace.train.corpus import open_named

    settings = Settings(
        n_layer=options.n_layer,
        n_head=options.n_head,
        n_embd=options.n_embd,
        context=options.context,
        micro_batch_size=options.micro_batch_size,
        max_steps=options.max_steps,
        swap_s=options.swap_s,
    )
    path = compare_nanogpt(
        options.nanogpt, open_named(options.dataset), settings, options.work, options.output
    )
    say(str(path))
    return 0
