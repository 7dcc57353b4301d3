"""`outpace convert SRC DST`: to and from Hugging Face folders, checked logit for logit."""

import json
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.core.errors import CheckpointError, UsageError
from outpace.core.log import say

TOLERANCE = 1e-4
"""Largest difference of fp32 logits between outpace's model and transformers'."""


@dataclass
class Options:
    """Convert a GPT-2 between outpace and Hugging Face; refused unless the logits agree."""

    source: Annotated[str, tyro.conf.Positional]
    """A run, a checkpoint or Hugging Face folder, or hf:NAME."""
    destination: Annotated[Path, tyro.conf.Positional]
    """Folder to make; it must not exist."""
    to: Literal["huggingface", "outpace"] = "huggingface"
    """Format of the result."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace convert")
    target = options.destination
    if target.exists():
        raise UsageError("EXISTS", f"{target} is already there", do="name a new folder")
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "NO-TRANSFORMERS",
            "the check of a conversion needs transformers",
            do="pip install 'outpace[interop]'",
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import torch

    from outpace.checkpoint import store
    from outpace.interop import huggingface
    from outpace.train.load_model import load_model

    loaded = load_model(options.source, torch.device("cpu"))
    model = loaded.model
    if loaded.tokenizer != "gpt2" and options.to == "huggingface":
        raise UsageError("TOKENIZER", f"the model reads {loaded.tokenizer}, not gpt2")
    weights = {k: v.detach() for k, v in model.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        if options.to == "huggingface":
            theirs = huggingface.transformers_model(weights, model.shape)
            theirs.save_pretrained(temporary)
            huggingface.write_tokenizer(temporary, model.shape.context)
            again = transformers.AutoModelForCausalLM.from_pretrained(temporary)
        else:
            state = {
                "format": store.FORMAT,
                "step": loaded.step or 0,
                "shape": asdict(model.shape),
                "tokenizer": loaded.tokenizer,
                "source": options.source,
            }
            store.save_as(temporary, loaded.step or 0, {store.MODEL: weights}, state)
            written = load_model(str(temporary), torch.device("cpu")).model.state_dict()
            again = huggingface.transformers_model(dict(written), model.shape)
        difference = huggingface.largest_logit_difference(model, again)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                "CONVERT",
                f"logits differ by {difference:.2e}, more than {TOLERANCE:g}",
                kept="the source, untouched; nothing was written",
            )
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if options.json:
        result = {"path": str(target), "to": options.to, "largest_logit_difference": difference}
        say(json.dumps(result, indent=2))
    else:
        say(f"{target}: {options.to}; logits agree with transformers' GPT-2 to {difference:.1e}")
    return 0
