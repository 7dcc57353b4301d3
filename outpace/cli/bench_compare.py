"""`outpace bench compare`: outpace against other projects' own code, in turns on this machine."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from outpace.cli.bench_shape import Shape, shape_of
from outpace.config.check import RANGES
from outpace.config.load import parse_flags
from outpace.config.presets import GPT2Shape
from outpace.config.ranges import Range
from outpace.config.schema import Auto
from outpace.core.errors import UsageError
from outpace.core.log import say

CPU_SHAPE = (6, 6, 192, 256)
"""Layers, heads, channels and context of a model that a CPU trains at a step every second or
two."""
GPU_TOKENS_PER_STEP = 524_288
RACE_ONLY = ("llmc", "modded", "transformers", "device", "threads", "gradient_accumulation_steps",
             "flags", "window_s", "rounds", "warmup_steps", "start_s", "minutes")  # fmt: skip
TRAIN_ONLY = ("max_steps", "swap_s", "work")
"""RACE_ONLY flags are refused with --train, TRAIN_ONLY flags without it."""

MICRO_STEPS = RANGES["gradient_accumulation_steps"]


@dataclass
class Options:
    """outpace's speed against other projects' own code: the same model and tokens on this machine,
    in turns.

    Give checkouts of the projects; their code runs unchanged. With --train: train to the end
    instead, beside nanoGPT on a CPU, and score both models.
    """

    nanogpt: Path | None = None
    """A checkout of karpathy/nanoGPT."""
    llmc: Path | None = None
    """A checkout of karpathy/llm.c, for its train_gpt2.py and, if it is built, its train_gpt2cu, or
    on a CPU its train_gpt2, for which micro_batch_size must be 4 and context 64."""
    modded: Path | None = None
    """A checkout of KellerJordan/modded-nanogpt, for its train_gpt_simple.py."""
    transformers: bool = False
    """Also the GPT-2 of the installed transformers."""
    dataset: str = "auto"
    """A prepared dataset, made with the gpt2 tokenizer."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. auto: the GPU if there is one."""
    threads: Annotated[tuple[int, ...], Range(1, 10_000)] = (1,)
    """CPU threads per process, one comparison per value: --threads 1 2."""
    model_size: str = "auto"
    """Published size. auto: 124M on a GPU, 6 layers of 192 channels, context 256, on a CPU."""
    n_layer: Annotated[int | Auto, RANGES["n_layer"]] = "auto"
    """Layers of the model."""
    n_head: Annotated[int | Auto, RANGES["n_head"]] = "auto"
    """Attention heads (H)."""
    n_embd: Annotated[int | Auto, RANGES["n_embd"]] = "auto"
    """Channels of the model (C)."""
    context: Annotated[int | Auto, RANGES["context"]] = "auto"
    """Tokens in a sequence (T)."""
    micro_batch_size: Annotated[int | Auto, RANGES["micro_batch_size"]] = "auto"
    """Sequences per pass (not modded-nanogpt). auto: 32 on a GPU, 8 on a CPU."""
    gradient_accumulation_steps: Annotated[int | Auto, MICRO_STEPS] = "auto"
    """Passes per step. auto: 524,288 tokens per step on a GPU, 1 pass on a CPU."""
    flags: str = ""
    """More `outpace train` flags for outpace's side, quoted, after an equals sign: ="--compile_mode
    tuned"."""
    window_s: Annotated[float, Range(0, 86_400, above=True)] = 15.0
    """Length of each turn in seconds."""
    rounds: Annotated[int, Range(1, 1000)] = 4
    """Number of turns of each project."""
    warmup_steps: Annotated[int, Range(1, 1_000_000)] = 5
    """First steps of each process, which do not count."""
    start_s: Annotated[float, Range(0, 86_400, above=True)] = 240.0
    """Seconds a process may take to compile and warm up. On a CPU all warm up at once."""
    minutes: Annotated[float, Range(0, 10_000, above=True)] = 9.0
    """Total time; turns are shortened to keep it."""
    output: Path | None = None
    """Result file. Default: results/compare-DEVICE.json, or compare-nanogpt-cpu.json."""
    train: bool = False
    """Train to the end beside nanoGPT (CPU), instead of short windows."""
    max_steps: Annotated[int, RANGES["max_steps"]] = 1200
    """With --train: optimiser steps of both."""
    swap_s: Annotated[float, Range(0, 86_400, above=True)] = 20.0
    """With --train: seconds after which the two swap their halves of the cores."""
    work: Path = Path("runs/compare-nanogpt")
    """With --train: folder for both runs; must be new."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench compare")
    if not options.threads:
        raise UsageError("BAD-VALUE", "--threads is empty", do="name at least one count")
    for name in RACE_ONLY if options.train else TRAIN_ONLY:
        if getattr(options, name) != getattr(Options, name):
            how = "with" if options.train else "without"
            raise UsageError(
                "BAD-VALUE", f"--{name} has no meaning {how} --train", do=f"leave --{name} out"
            )
    peers = (options.nanogpt, options.llmc, options.modded)
    if options.train and options.nanogpt is None:
        raise UsageError("NO-PEER", "--train compares with nanoGPT", do="add --nanogpt CHECKOUT")
    if not any(peers) and not options.transformers:
        raise UsageError(
            "NO-PEER",
            "no project to compare with",
            do="add --nanogpt, --llmc or --modded with a checkout, or --transformers",
        )
    say(str(_train(options) if options.train else _race(options)))
    return 0


def _train(options: Options) -> Path:
    from outpace.bench.compare import Settings, compare_nanogpt
    from outpace.train.corpus import open_named

    assert options.nanogpt is not None
    n_layer, n_head, n_embd, context = _shape(options, on_gpu=False)
    settings = Settings(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        context=context,
        micro_batch_size=_or(options.micro_batch_size, 8),
        max_steps=options.max_steps,
        swap_s=options.swap_s,
    )
    dataset = open_named(options.dataset)
    return compare_nanogpt(options.nanogpt, dataset, settings, options.work, options.output)


def _race(options: Options) -> Path:
    from outpace.bench.peers import Job, check_checkout
    from outpace.bench.throughput import Race, compare_speed
    from outpace.bench.turns import Pace
    from outpace.runtime.device import choose_device
    from outpace.train.corpus import open_named

    checkouts: dict[str, Path | None] = {
        name: folder
        for name in ("nanogpt", "llmc", "modded")
        if (folder := getattr(options, name)) is not None
    }
    for name, folder in checkouts.items():
        assert folder is not None
        check_checkout(name, folder)
    if options.transformers:
        checkouts["transformers"] = None
    device = choose_device(options.device, 0).type
    on_gpu = device == "cuda"
    if options.llmc:
        checkouts["llmc_cuda" if on_gpu else "llmc_c"] = options.llmc
    n_layer, n_head, n_embd, context = _shape(options, on_gpu)
    micro = _or(options.micro_batch_size, 32 if on_gpu else 8)
    passes = max(1, GPU_TOKENS_PER_STEP // (micro * context)) if on_gpu else 1
    accumulation = _or(options.gradient_accumulation_steps, passes)
    dataset = open_named(options.dataset)
    shape = GPT2Shape(n_layer, n_head, n_embd, context, dataset.vocab_size)
    flags = tuple(shlex.split(options.flags))
    race = Race(
        Job(shape, dataset, micro, accumulation, device, flags),
        checkouts,
        Pace(options.window_s, options.rounds, options.warmup_steps, options.start_s),
        options.threads if not on_gpu else (1,),
        options.minutes,
    )
    return compare_speed(race, options.output)


def _shape(options: Options, on_gpu: bool) -> Shape:
    asked = (options.n_layer, options.n_head, options.n_embd, options.context)
    return shape_of(asked, options.model_size, CPU_SHAPE, on_gpu=on_gpu)


def _or(asked: int | Auto, default: int) -> int:
    return default if asked == "auto" else asked
