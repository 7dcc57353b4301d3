"""`outpace bench kernels`: sustained products, copies, attention, loss, AdamW of this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from outpace.config.check import RANGES
from outpace.config.load import parse_flags
from outpace.config.presets import GPT2_VOCAB, size
from outpace.config.ranges import Range
from outpace.config.schema import Auto
from outpace.core.errors import UsageError
from outpace.core.log import say

Part = Literal["gemm", "copy", "attention", "cross_entropy", "adamw"]


@dataclass
class Options:
    """Measure this machine's sustained rates: the products of GPT-2's linear maps forward and
    backward, copies, every attention and cross-entropy backend, AdamW. They are saved as the
    calibration from which `outpace plan` predicts."""

    model_size: str = "124M"
    """Published size whose shapes are measured."""
    tokens: Annotated[int | Auto, Range(1, 100_000_000)] = "auto"
    """Rows of the products: tokens in a micro-batch. auto: 65,536 on a GPU, 2,048 on a CPU."""
    context: Annotated[int, RANGES["context"]] = 1024
    """Tokens in a sequence (T), for attention."""
    vocab_size: Annotated[int, Range(2, 10_000_000)] = GPT2_VOCAB
    """Vocabulary of head and loss, before padding."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Type of the products; no is fp32. auto: bf16 where fast, else fp16 on a GPU, else no."""
    seconds: Annotated[float | Auto, Range(0, 3600, above=True)] = "auto"
    """Length of each loop. auto: 2 on a GPU, 1 on a CPU."""
    quick: bool = False
    """Loops of a twentieth of a second: a rough idea only, so no calibration is saved."""
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure. auto: the GPU if there is one."""
    output: Path | None = None
    """Result file. Default: results/kernels-DEVICE.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench kernels")
    if not options.parts:
        raise UsageError("BAD-VALUE", "--parts is empty", do="name at least one part")
    preset = size(options.model_size)

    from outpace.bench.kernels import Kernels, measure
    from outpace.runtime.device import choose_device
    from outpace.runtime.hardware import detect

    device = choose_device(options.device, 0)
    on_gpu, precision = device.type == "cuda", options.precision
    if precision == "auto":
        precision = "bf16" if detect(device.type).bf16 else "fp16" if on_gpu else "no"
    tokens, seconds = options.tokens, options.seconds
    if tokens == "auto":
        tokens = 65_536 if on_gpu else 2048
    if seconds == "auto":
        seconds = 2.0 if on_gpu else 1.0
    kernels = Kernels(
        preset.shape(options.context, options.vocab_size),
        tokens,
        precision,
        0.05 if options.quick else seconds,
        device,
        options.parts,
        calibrate=not options.quick,
    )
    say(str(measure(kernels, options.output)))
    return 0
