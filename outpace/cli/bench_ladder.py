"""`outpace bench ladder`: from naive to fast, one setting at a time: what each is worth here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from outpace.cli.bench_shape import shape_of
from outpace.config.check import RANGES
from outpace.config.load import parse_flags
from outpace.config.presets import GPT2Shape
from outpace.config.ranges import Range
from outpace.config.schema import Auto
from outpace.core.log import say

CPU_SHAPE = (4, 4, 128, 256)
"""Layers, heads, channels and context of a model small enough to climb the ladder on a CPU in
minutes."""


@dataclass
class Options:
    """From naive PyTorch to the fastest training of the same GPT-2, one setting at a time, each in
    a new process over the same training step: tokens per second, memory, kernels, and the
    difference in loss from the lowest rung on the same batches."""

    rungs: tuple[str, ...] = ()
    """Rungs to measure above the lowest. Default: all that run fast on this machine."""
    without: tuple[str, ...] = ()
    """Rungs to leave out, together with those that need them."""
    leave_one_out: bool = False
    """Also measure the top of the ladder without each of its rungs in turn."""
    best_micro_batch: bool = True
    """Also measure the lowest and the top rung at their best micro-batch."""
    resume: bool = False
    """Continue the result file of an earlier call: keep what it measured with the same code,
    PyTorch and flags, on the same data and kind of machine."""
    dataset: str = "auto"
    """A prepared dataset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. auto: the GPU if there is one."""
    model_size: str = "auto"
    """Published size. auto: 124M on a GPU; 4 layers of 128 channels, context 256, on a CPU."""
    n_layer: Annotated[int | Auto, RANGES["n_layer"]] = "auto"
    """Layers of the model."""
    n_head: Annotated[int | Auto, RANGES["n_head"]] = "auto"
    """Attention heads (H)."""
    n_embd: Annotated[int | Auto, RANGES["n_embd"]] = "auto"
    """Channels of the model (C)."""
    context: Annotated[int | Auto, RANGES["context"]] = "auto"
    """Tokens in a sequence (T)."""
    drift_steps: Annotated[int, Range(0, 100_000)] = 50
    """Steps after which the losses are compared; 0: do not compare."""
    warmup_s: Annotated[float, Range(0, 86_400)] = 2.0
    """Seconds of warm-up, after the compared steps."""
    window_s: Annotated[float | Auto, Range(0, 86_400, above=True)] = "auto"
    """Seconds of each of the three windows. auto: 10 on a GPU, 4 on a CPU; 30 to publish."""
    minutes: Annotated[float | Auto, Range(0, 10_000, above=True)] = "auto"
    """Total time; windows are shortened to keep it, and what does not fit is left out. auto: 25 on
    a GPU, 14 on a CPU."""
    output: Path | None = None
    """Result file. Default: results/ladder-DEVICE.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench ladder")

    from outpace.bench.ladder import Climb, climb
    from outpace.bench.rungs import BY_DEVICE, pick
    from outpace.runtime.device import choose_device
    from outpace.runtime.hardware import detect
    from outpace.train.capabilities import capabilities
    from outpace.train.corpus import open_named

    device = choose_device(options.device, 0)
    on_gpu = device.type == "cuda"
    # Refuse a mistyped name before anything is opened.
    pick(BY_DEVICE[device.type], options.rungs, options.without)
    asked = (options.n_layer, options.n_head, options.n_embd, options.context)
    L, H, C, T = shape_of(asked, options.model_size, CPU_SHAPE, on_gpu=on_gpu)
    dataset = open_named(options.dataset)
    c = Climb(
        GPT2Shape(L, H, C, T, dataset.vocab_size),
        dataset,
        device,
        options.rungs,
        options.without,
        options.leave_one_out,
        options.drift_steps,
        options.warmup_s,
        (10.0 if on_gpu else 4.0) if options.window_s == "auto" else options.window_s,
        (25.0 if on_gpu else 14.0) if options.minutes == "auto" else options.minutes,
        options.best_micro_batch,
        options.resume,
    )
    say(str(climb(c, detect(device.type), capabilities(device), options.output)))
    return 0
