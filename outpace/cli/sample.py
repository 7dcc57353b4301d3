"""`outpace sample MODEL`: text from a model."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.core.errors import UsageError
from outpace.core.log import say


@dataclass
class Options:
    """Generate text with a KV cache. The same seed gives the same text."""

    model: Annotated[str, tyro.conf.Positional]
    """A run, a checkpoint or Hugging Face folder, or hf:NAME."""
    prompt: str = ""
    """How the text begins; empty for the beginning of a document."""
    max_new_tokens: int = 100
    """Tokens to generate a sample."""
    temperature: float = 0.8
    """0 takes the most likely token; 1 the model's own probabilities."""
    top_k: int = 200
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability."""
    num_samples: int = 1
    """How many texts."""
    seed: int = 1337
    """Decides what is drawn."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace sample")
    limits = {
        "max_new_tokens": (1, 10**6),
        "temperature": (0, 1000),
        "top_k": (0, 10**6),
        "top_p": (1e-6, 1),
        "num_samples": (1, 10**4),
        "seed": (0, 2**63 - 1),
    }
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if not least <= value <= most:
            raise UsageError("BAD-VALUE", f"--{name} {value} must be from {least:g} to {most:g}")

    from outpace.generate.engine import complete
    from outpace.generate.sampling import Sampling
    from outpace.runtime.seeds import generator
    from outpace.tokenizer import get_tokenizer
    from outpace.train.assemble import choose_device
    from outpace.train.load_model import load_model

    loaded = load_model(options.model, choose_device(options.device, 0))
    tokenizer = get_tokenizer(loaded.tokenizer)
    samples = complete(
        loaded.model,
        tokenizer.encode(options.prompt) or [tokenizer.end_of_text],
        max_new_tokens=options.max_new_tokens,
        how=Sampling(options.temperature, options.top_k, options.top_p),
        generator=generator(options.seed, "sample"),
        num_samples=options.num_samples,
        stop_token=tokenizer.end_of_text,
    )
    for i, ids in enumerate(samples):
        if options.num_samples > 1:
            say(f"--- {i + 1}")
        say(options.prompt + tokenizer.decode(ids))
    return 0
