"""`outpace sample MODEL`: generate text from a model, streamed as it is generated."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.errors import DataError, UsageError
from outpace.core.log import note, show, show_json

if TYPE_CHECKING:
    from outpace.generate.samples import Sample

MOST_PROMPT_BYTES = 64 * 1024 * 1024


@dataclass
class Options:
    """Generate text with a KV cache, streamed. The same seed gives the same text."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run, a checkpoint, a Hugging Face or OpenAI folder, nanoGPT's ckpt.pt, llm.c's model .bin,
    or hf:NAME."""
    prompt: str = ""
    """How the text begins; empty for the beginning of a document."""
    prompt_file: str = ""
    """A file with the prompt instead; - for standard input."""
    max_new_tokens: Annotated[int, Range(1, 1_000_000)] = 100
    """Tokens to generate per sample."""
    temperature: Annotated[float, Range(0, 1000)] = 0.8
    """0 takes the most likely token; 1 the model's own probabilities."""
    top_k: Annotated[int, Range(0, 1_000_000)] = 200
    """Only the k most likely tokens; 0 for all."""
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Only the most likely tokens that together reach this probability."""
    num_samples: Annotated[int, Range(1, 10_000)] = 1
    """How many texts, generated together; the first is streamed."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample, and are not part of it. The end of a document always ends it."""
    beyond_context: Literal["slide", "stop"] = "slide"
    """When the context is full: slide continues from its last half, stop ends the text."""
    show_probabilities: bool = False
    """Show each token with its probability, its rank, and the five most likely."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 1337
    """Seed of the random draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run. auto: the GPU if there is one."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """bfloat16 and int8 are faster on a CPU, but approximate, so texts differ."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace sample")
    if "" in options.stop:
        raise UsageError("BAD-VALUE", "--stop has an empty text", do="leave it out")
    prompt = _prompt(options)

    from outpace.generate.samples import Sample, sample
    from outpace.generate.sampling import Sampling
    from outpace.generate.weights import with_weights
    from outpace.runtime.device import choose_device
    from outpace.runtime.seeds import generator
    from outpace.tokenizer import get_tokenizer
    from outpace.train.load_model import load_model

    loaded = load_model(options.model, choose_device(options.device, 0))
    model = with_weights(loaded.model, options.weights)
    tokenizer = get_tokenizer(loaded.tokenizer)
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    _tell_of_context(len(ids), options, model.shape.context)
    samples = [Sample(tokenizer, options.stop) for _ in range(options.num_samples)]
    live = not options.json
    if live:
        _head(prompt, 0, options)
    for step in sample(
        model,
        ids,
        samples,
        max_new_tokens=options.max_new_tokens,
        how=Sampling(options.temperature, options.top_k, options.top_p),
        generator=generator(options.seed, "sample"),
        beyond_context=options.beyond_context,
        alternatives=5 if options.show_probabilities else 0,
    ):
        if live:
            _show_piece(samples[0], step, options)
    if live:
        for i, other in enumerate(samples):
            if i:
                _head(prompt, i, options)
                for step in range(len(other.pieces)):
                    _show_piece(other, step, options)
            show("", end="" if options.show_probabilities else "\n")
        return 0
    result: dict[str, Any] = {
        "model": loaded.source,
        "step": loaded.step,
        "seed": options.seed,
        "texts": [prompt + "".join(s.pieces) for s in samples],
        "ended_by": [s.ended_by for s in samples],
    }
    if options.show_probabilities:
        result["tokens"] = [[vars(t) for t in s.tokens] for s in samples]
    show_json(result)
    return 0


def _prompt(options: Options) -> str:
    """The prompt from its flag, a file or standard input."""
    if options.prompt and options.prompt_file:
        raise UsageError(
            "BAD-VALUE", "--prompt and --prompt_file both give a prompt", do="give one"
        )
    name = {"": "--prompt", "-": "standard input"}.get(options.prompt_file, options.prompt_file)
    try:
        if not options.prompt_file:
            data = os.fsencode(options.prompt)  # the bytes the shell gave, in any locale
        elif options.prompt_file == "-":
            data = sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1)
        else:
            with open(Path(options.prompt_file), "rb") as file:
                data = file.read(MOST_PROMPT_BYTES + 1)
        if len(data) > MOST_PROMPT_BYTES:
            raise ValueError(f"it is longer than {MOST_PROMPT_BYTES:,} bytes")
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(
            "PROMPT", f"cannot use {name} as a prompt: {why}", do="give text in UTF-8"
        ) from error


def _tell_of_context(prompt_tokens: int, options: Options, context: int) -> None:
    if prompt_tokens > context:
        note(f"the prompt has {prompt_tokens:,} tokens; the model sees the last {context:,}")
    if min(prompt_tokens, context) + options.max_new_tokens - 1 > context:
        then = {
            "slide": f"then the model continues from the last {context // 2 or 1:,} tokens",
            "stop": "then the text ends",
        }[options.beyond_context]
        note(f"prompt and new tokens may fill the context of {context:,}; {then}")


def _head(prompt: str, number: int, options: Options) -> None:
    if options.num_samples > 1:
        show(f"--- {number + 1}")
    show(prompt, end="\n" if options.show_probabilities and prompt else "")


def _show_piece(sample: "Sample", step: int, options: Options) -> None:
    """Show the result of step `step`: its text, or a line with the token's probability."""
    if not options.show_probabilities:
        show("".join(sample.pieces[step : step + 1]), end="")
    elif step < len(sample.tokens):
        token = sample.tokens[step]
        likeliest = "  ".join(f"{json.dumps(t, ensure_ascii=False)} {p:.3f}" for t, p in token.top)
        text = json.dumps(token.text, ensure_ascii=False)
        show(f"{token.probability:8.4f}  #{token.rank:<6} {text:24} {likeliest}")
