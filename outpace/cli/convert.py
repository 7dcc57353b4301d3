"""`outpace convert SRC DST`: to and from other programs' formats, checked logit for logit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.core.errors import UsageError
from outpace.core.log import say, show_json

BY_SUFFIX = {".gguf": "gguf", ".bin": "llmc", ".pt": "nanogpt"}


@dataclass
class Options:
    """Convert a GPT-2 from or to another program's format; refused unless the logits agree."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run, a checkpoint, a Hugging Face folder, OpenAI's TensorFlow folder, nanoGPT's ckpt.pt,
    llm.c's model .bin, or hf:NAME."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
    """Folder (huggingface, outpace) or file (gguf, llmc, nanogpt) to write; must not exist."""
    to: Literal["auto", "huggingface", "outpace", "gguf", "llmc", "nanogpt"] = "auto"
    """Format of the result. auto: gguf for a name ending in .gguf, llmc for .bin, nanogpt for .pt,
    else huggingface."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the numbers. float16: huggingface, gguf. bfloat16: huggingface, llmc."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace convert")
    target = options.destination
    if target.exists():
        raise UsageError("EXISTS", f"{target} already exists", do="name a new one")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import torch

    from outpace.tools.convert import check_target, convert
    from outpace.train.load_model import load_model

    to = BY_SUFFIX.get(target.suffix, "huggingface") if options.to == "auto" else options.to
    dtype: torch.dtype = getattr(torch, options.dtype)
    check_target(to, target, dtype)  # before a large model is read
    loaded = load_model(options.source, torch.device("cpu"))
    difference = convert(loaded, to, target, dtype)
    if options.json:
        result = {
            "path": str(target),
            "to": to,
            "dtype": options.dtype,
            "largest_logit_difference": difference,
        }
        show_json(result)
    else:
        say(f"{target}: {to}; logits agree with transformers' GPT-2 to {difference:.1e}")
    return 0
