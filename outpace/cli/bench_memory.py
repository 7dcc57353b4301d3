"""`outpace bench memory`: peak memory, predicted and counted; attention's by sequence length."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from outpace.config.check import RANGES
from outpace.config.load import parse_flags
from outpace.config.presets import GPT2_CONTEXT, GPT2_VOCAB, size
from outpace.config.ranges import Range
from outpace.core.errors import UsageError
from outpace.core.log import say

Part = Literal["attention", "step"]


@dataclass
class Options:
    """Peak memory of attention's forward and backward at growing lengths, each in a new process;
    and of a training step at a dozen settings: by the formula that the plan uses, as counted under
    fake tensors (which needs neither the memory nor a GPU), and with --measure on a GPU."""

    parts: tuple[Part, ...] = get_args(Part)
    """What to measure."""
    lengths: Annotated[tuple[int, ...], Range(1, 1_000_000)] = (512, 1024, 2048, 4096, 8192)
    """Sequence lengths T of attention, in tokens."""
    heads: Annotated[int, Range(1, 1000)] = 12
    """Attention heads (H)."""
    head_dim: Annotated[int, Range(1, 1024)] = 64
    """Channels of a head (D)."""
    model_size: str = "124M"
    """Published size of the step's model."""
    micro_batch_size: Annotated[int, RANGES["micro_batch_size"]] = 8
    """Sequences in the step's micro-batch."""
    context: Annotated[int, RANGES["context"]] = GPT2_CONTEXT
    """Tokens in a sequence of the step."""
    vocab_size: Annotated[int, Range(2, 10_000_000)] = GPT2_VOCAB
    """Vocabulary of the step's model, before padding."""
    measure: bool = False
    """On a GPU, also run the step, and show the memory it took."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure. auto: the GPU if there is one."""
    output: Path | None = None
    """Result file. Default: results/attention-memory-DEVICE.json with attention, else
    step-memory-DEVICE.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench memory")
    for name in ("lengths", "parts"):
        if not getattr(options, name):
            raise UsageError("BAD-VALUE", f"--{name} is empty", do="name at least one")
    preset = size(options.model_size)

    from outpace.bench import attention_memory, step_memory
    from outpace.bench.result import check_writable, write_result
    from outpace.runtime.device import choose_device

    device = choose_device(options.device, 0)
    name = "attention" if "attention" in options.parts else "step"
    check_writable(f"{name}-memory-{device.type}", options.output)
    body: dict[str, object] = {}

    def keep(found: dict[str, object]) -> Path:
        """Write after each result, so that an interrupted call leaves what it has measured."""
        body.update(found)
        return write_result(f"{name}-memory-{device.type}", device.type, body, options.output)

    if "attention" in options.parts:
        shape = (options.heads, options.head_dim)
        keep(attention_memory.measure(options.lengths, *shape, device, keep=keep))
    if "step" in options.parts:
        model = preset.shape(options.context, options.vocab_size)
        micro = options.micro_batch_size
        body |= {"model": vars(model), "micro_batch_size": micro}
        step_memory.rows(
            model, micro, device, options.measure, lambda rows: keep({"steps": list(rows)})
        )
    say(str(keep({})))
    return 0
