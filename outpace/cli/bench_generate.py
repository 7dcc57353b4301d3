"""`outpace bench generate`: generation beside transformers' generate, with the tokens compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.errors import UsageError
from outpace.core.log import say


@dataclass
class Options:
    """Greedy generation on the CPU beside transformers: the same weights and prompts, in turns."""

    model: str = ""
    """A model as for `outpace sample`. Default: random weights of the size below."""
    model_size: str = "124M"
    """Published size of the random model."""
    batch: tuple[int, ...] = (1, 8)
    """Prompts per batch, one comparison per value."""
    prompt_tokens: Annotated[int, Range(1, 100_000)] = 64
    """Tokens of each prompt, drawn at random."""
    new_tokens: Annotated[int, Range(1, 100_000)] = 64
    """Tokens generated for each prompt."""
    rounds: Annotated[int, Range(1, 1000)] = 3
    """Number of turns of each that count, after one warm-up."""
    threads: Annotated[int, Range(0, 10_000)] = 0
    """CPU threads. 0: PyTorch's choice."""
    other_weights: bool = True
    """Also outpace with bfloat16 and int8 matrices, which are approximations, and transformers in
    bfloat16."""
    output: Path | None = None
    """Result file. Default: results/generation-cpu.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench generate")
    if not options.batch or min(options.batch) < 1 or max(options.batch) > 10_000:
        raise UsageError("BAD-VALUE", "--batch needs numbers from 1 to 10,000", do="--batch 1 8")
    import torch

    from outpace.bench.generation import Settings, bench_generation, random_model
    from outpace.config.presets import size
    from outpace.train.load_model import load_model

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.model:
        loaded = load_model(options.model, torch.device("cpu"))
        model, name = loaded.model, Path(loaded.source).name
    else:
        model = random_model(size(options.model_size).shape())
        name = f"random weights, {options.model_size}"
    tokens = options.prompt_tokens + options.new_tokens
    if tokens > model.shape.context:
        raise UsageError(
            "BAD-VALUE",
            f"{tokens} tokens exceed the model's context of {model.shape.context}",
            do="lower --prompt_tokens or --new_tokens",
        )
    settings = Settings(options.batch, options.prompt_tokens, options.new_tokens, options.rounds)
    say(str(bench_generation(model, name, settings, options.other_weights, options.output)))
    return 0
