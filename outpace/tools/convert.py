"""A model written for another program, read back (by transformers' own reader where it has one) and
compared logit for logit with transformers' GPT-2. What does not agree is not kept.
"""

import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from outpace.checkpoint import store
from outpace.core.errors import CheckpointError, StorageError, UsageError
from outpace.interop import gguf_file, huggingface, llmc, nanogpt
from outpace.interop.declared import why_not_plain
from outpace.model.gpt2 import GPT2
from outpace.tokenizer import get_tokenizer
from outpace.train.load_model import LoadedModel, load_model

TOLERANCE, LEAST_SCALE = 1e-5, 10.0
"""Largest difference of fp32 logits, relative to the largest logit (to 10 if it is smaller): the
rounding of sums in another order. Trained models have logits of some 100."""
PROBE = "Hello, world!  It's 1919 — naïve café 🙂\n"
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Target:
    """A format to write: a row of `TARGETS`."""

    write: Callable[[Path, LoadedModel, Tensors, torch.dtype], Any]
    """(path, the model, its rounded weights, dtype) -> a transformers model of what is written."""
    dtypes: tuple[torch.dtype, ...]
    has_tokenizer: bool = False
    """Whether GPT-2's tokenizer is part of it, so that no other vocabulary can be written."""
    suffix: str = ""
    """The file-name suffix that readers of the format expect."""
    any_variant: bool = False
    is_rounded: Callable[[str, torch.Tensor], bool] = lambda name, tensor: True
    """Which tensors a smaller dtype is for."""


def convert(loaded: LoadedModel, to: str, path: Path, dtype: torch.dtype) -> float:
    """Write `loaded` as a `to` of that dtype at `path`, which must not exist, and return the
    largest difference of logits to what was read back. UsageError for what the format cannot hold,
    CheckpointError when the logits differ; then nothing is left. A source that transformers reads
    too is first compared with its reading."""
    target = TARGETS[to]
    check_target(to, path, dtype)
    _refuse_impossible(loaded, to, target)
    model = loaded.model
    weights = {
        name: w.to(dtype).float() if target.is_rounded(name, w) else w
        for name, w in ((name, p.detach()) for name, p in model.state_dict().items())
    }
    if bad := next((name for name, w in weights.items() if not w.isfinite().all()), None):
        raise UsageError("DTYPE", f"{bad} exceeds what {dtype} holds", do="use --dtype float32")
    if loaded.folder is not None:
        _compare(model, huggingface.as_transformers_reads(loaded.folder), "the source")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex[:8]}-{path.name}"
    try:
        try:
            again = target.write(temporary, loaded, weights, dtype)
        except SafetensorError as error:  # it has no OSError for a full disk
            raise StorageError(
                "STORAGE", f"cannot write {path}: {error}", do="free space or choose another folder"
            ) from error
        if dtype != torch.float32 or model.compute.document_mask:  # which transformers has not
            model = GPT2(model.shape)
            model.load_state_dict(weights)
        difference = _compare(model, again, "what was written")
        temporary.rename(path)
    finally:
        if temporary.is_file():
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)
    return difference


def _compare(ours: GPT2, theirs: Any, what: str) -> float:
    """The largest difference of logits; CheckpointError when it is not rounding."""
    difference, largest = huggingface.disagreement(ours, theirs)
    if not difference <= TOLERANCE * max(largest, LEAST_SCALE):
        raise CheckpointError(
            "CONVERT",
            f"logits differ by {difference:.2e} (the largest is {largest:.0f}) between outpace's "
            f"model and transformers' of {what}",
            kept="the source, untouched; nothing was written",
        )
    return difference


def check_target(to: str, path: Path, dtype: torch.dtype) -> None:
    """UsageError if no model at all can be written as a `to` of that dtype at `path`."""
    target = TARGETS[to]
    if dtype not in target.dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in target.dtypes)
        raise UsageError("DTYPE", f"{to} is not written in {dtype}", do=f"--dtype {names}")
    if target.suffix and path.suffix != target.suffix:
        raise UsageError(
            "NAME", f"{path.name} is not a valid name for {to}", do=f"end it in {target.suffix}"
        )


def _refuse_impossible(loaded: LoadedModel, to: str, target: Target) -> None:
    if not target.any_variant and (why := why_not_plain(loaded.model.shape)):
        raise UsageError(
            "VARIANT", f"{to} holds GPT-2 alone: {why}", do="--to outpace keeps every variant"
        )
    if target.has_tokenizer and loaded.tokenizer != "gpt2":
        raise UsageError(
            "TOKENIZER",
            f"the model reads {loaded.tokenizer}, not gpt2",
            do="--to outpace, llmc or nanogpt",
        )


def _huggingface(path: Path, loaded: LoadedModel, weights: Tensors, dtype: torch.dtype) -> Any:
    """A folder that transformers and lm-eval load with nothing else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = huggingface.transformers_model(dict(weights), loaded.model.shape)
    model.to(dtype).save_pretrained(path)
    config = (path / "config.json").stat()
    for file in path.glob("*.safetensors"):  # which safetensors lets nobody else read
        file.chmod(config.st_mode)
    huggingface.write_tokenizer(path, loaded.model.shape.context)
    huggingface.write_card(path, loaded.source, loaded.step)
    _check_tokenizer(AutoTokenizer.from_pretrained(path))
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _outpace(path: Path, loaded: LoadedModel, weights: Tensors, dtype: torch.dtype) -> Any:
    """A checkpoint."""
    shape, step = loaded.model.shape, loaded.step or 0
    state = {
        "format": store.FORMAT,
        "step": step,
        "shape": asdict(shape),
        "tokenizer": loaded.tokenizer,
        "source": loaded.source,
        "document_mask": loaded.model.compute.document_mask is not None,
    }
    store.save_as(path, step, {store.MODEL: weights}, state)
    written = load_model(str(path), torch.device("cpu")).model.state_dict()
    return huggingface.transformers_model(dict(written), shape)


def _gguf(path: Path, loaded: LoadedModel, weights: Tensors, dtype: torch.dtype) -> Any:
    """One file for llama.cpp."""
    from transformers import GPT2LMHeadModel

    shape = loaded.model.shape
    gguf_file.write_model(path, dict(weights), shape, dtype, f"GPT-2 of {Path(loaded.source).name}")
    config = huggingface.transformers_config(shape)
    return GPT2LMHeadModel.from_pretrained(path.parent, gguf_file=path.name, config=config)


def _llmc(path: Path, loaded: LoadedModel, weights: Tensors, dtype: torch.dtype) -> Any:
    """One file for llm.c."""
    shape = loaded.model.shape
    version = next(v for v, d in llmc.DTYPES.items() if d == dtype)
    llmc.write_model(path, dict(weights), shape, version)
    return huggingface.transformers_model(llmc.read_model(path)[1], shape)


def _nanogpt(path: Path, loaded: LoadedModel, weights: Tensors, dtype: torch.dtype) -> Any:
    """A ckpt.pt for nanoGPT."""
    nanogpt.write_checkpoint(path, dict(weights), loaded.model.shape, loaded.step or 0)
    shape, again, _ = nanogpt.read_checkpoint(path)
    return huggingface.transformers_model(again, shape)


def _check_tokenizer(theirs: Any) -> None:
    if theirs(PROBE)["input_ids"] != get_tokenizer("gpt2").encode(PROBE):
        raise CheckpointError("CONVERT", "the tokenizer that was written gives other ids")


FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
TARGETS = {
    "huggingface": Target(_huggingface, (FP32, FP16, BF16), has_tokenizer=True),
    "outpace": Target(_outpace, (FP32,), any_variant=True),
    "gguf": Target(
        _gguf, (FP32, FP16), has_tokenizer=True, suffix=".gguf", is_rounded=gguf_file.is_halved
    ),
    "llmc": Target(_llmc, (FP32, BF16)),
    "nanogpt": Target(_nanogpt, (FP32,), suffix=".pt"),
}
