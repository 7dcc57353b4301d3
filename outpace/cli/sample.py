"""`outpace sample MODEL`: text from a model."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from outpace.config.check import Range, check_ranges
from outpace.config.load import parse_flags
from outpace.core.log import show

RANGES = {
    "max_new_tokens": Range(1, 1_000_000),
    "temperature": Range(0, 1000),
    "top_k": Range(0, 1_000_000),
    "top_p": Range(0, 1, above=True),
    "num_samples": Range(1, 10_000),
    "seed": Range(0, 2**63 - 1),
}


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
    """Where to run. auto: the GPU if there is one."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace sample")
    check_ranges(options, RANGES, "outpace sample")

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
    texts = [options.prompt + tokenizer.decode(ids) for ids in samples]
    if options.json:
        result = {"model": loaded.source, "step": loaded.step, "seed": options.seed, "texts": texts}
        show(json.dumps(result, indent=2))
        return 0
    for i, text in enumerate(texts):
        if options.num_samples > 1:
            show(f"--- {i + 1}")
        show(text)
    return 0
