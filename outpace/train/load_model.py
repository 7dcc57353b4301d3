"""A model by reference: a run, a checkpoint, a Hugging Face folder, hf:NAME; OpenAI's TensorFlow
folder, nanoGPT's ckpt.pt or the folder it is in, llm.c's .bin."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from outpace.checkpoint import store
from outpace.checkpoint.state import load_weights
from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError, UsageError
from outpace.core.log import warn
from outpace.core.runfolder import RunFolder
from outpace.evals.probe import changed_since
from outpace.interop import hub, huggingface, llmc, nanogpt, openai
from outpace.interop.declared import check_shape, check_tensors
from outpace.model.gpt2 import GPT2, Compute
from outpace.ops.attention import sdpa
from outpace.tokenizer import TOKENIZERS

NAMES = (
    "a run, a checkpoint, a Hugging Face or OpenAI folder, nanoGPT's ckpt.pt, llm.c's model.bin, "
    "or hf:NAME"
)

BEGINNINGS = {
    "scratch": "leave --init_from out",
    "resume": "leave --init_from out: the same command continues its run",
}
"""What nanoGPT's --init_from names beside models."""
OPENAIS = re.compile("gpt2(-medium|-large|-xl)?")
"""As transformers and nanoGPT name what is on the hub."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, and where it came from."""

    model: GPT2
    tokenizer: str
    source: str
    step: int | None = None
    folder: Path | None = None
    """The Hugging Face folder it was read from."""


def load_model(reference: str, device: torch.device) -> LoadedModel:
    """Find, verify and load what `reference` names."""
    if reference.startswith("hf:"):
        files = (huggingface.CONFIG, huggingface.WEIGHTS)
        return _from_huggingface(hub.fetch(reference[3:], files), device, reference)
    check_there(reference)
    path = Path(reference)
    theirs = path / nanogpt.NAME if path.is_dir() else path
    if theirs.is_file() and theirs.suffix == ".pt":
        shape, weights, iterations = nanogpt.read_checkpoint(theirs)
        return _loaded(shape, weights, device, reference, iterations)
    if llmc.is_file(path):
        return _loaded(*llmc.read_model(path), device, reference)
    if (path / store.STATE).exists():
        return _from_checkpoint(store.load(path), device)
    if huggingface.is_folder(path):
        return _from_huggingface(path, device, reference)
    if openai.is_folder(path):
        return _loaded(*openai.read_folder(path), device, reference)
    if checkpoint := store.latest(RunFolder(path).checkpoints, set_aside=False):
        return _from_checkpoint(checkpoint, device)
    if RunFolder(path).plan.is_file():
        raise CheckpointError(
            "NO-MODEL",
            f"the run in {reference} has no whole checkpoint",
            do=f"let it save one; outpace status {reference} shows how far it is",
        )
    raise CheckpointError(
        "NO-MODEL",
        f"{reference} holds neither a checkpoint nor a GPT-2 of Hugging Face or OpenAI"
        + huggingface.why_not_folder(path),
        do="name a run with a saved checkpoint, or a folder with config.json and model.safetensors",
    )


def check_there(reference: str) -> None:
    """UsageError where nothing has that name."""
    path = Path(reference)
    known = path.is_dir() or (path.is_file() and (path.suffix == ".pt" or llmc.is_file(path)))
    if not known and not reference.startswith("hf:"):
        hub_name = f"hf:{reference}, or " if OPENAIS.fullmatch(reference) else ""
        what = f"{reference} is not a model" if path.exists() else f"there is no model {reference}"
        do = BEGINNINGS.get(reference) or f"name {hub_name}{NAMES}"
        raise UsageError("NO-MODEL", what, do=do)


def _from_checkpoint(checkpoint: store.Checkpoint, device: torch.device) -> LoadedModel:
    """The model of a checkpoint whose hashes are right. Anyone can write right hashes, so what it
    declares is checked too, before memory is taken for it."""
    try:
        shape = check_shape(GPT2Shape(**checkpoint.state["shape"]))
        weights = checkpoint.model()  # mapped from the file, not read
        check_tensors(shape, {k: tuple(t.shape) for k, t in weights.items()}, padded=True)
    except (SafetensorError, OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            "CKPT-MODEL",
            f"{checkpoint.path} holds no model ({type(error).__name__}: {error})",
            do="use another checkpoint",
        ) from error
    # Trained with its documents kept apart, it is to read them so. Converted, it has no identity.
    identity = checkpoint.state.get("identity", checkpoint.state)
    apart = isinstance(identity, dict) and identity.get("document_mask") is True
    loaded = _loaded(shape, weights, device, str(checkpoint.path), checkpoint.step, apart)
    if checkpoint.state.get("tokenizer") != loaded.tokenizer:
        raise CheckpointError(
            "TOKENIZER",
            f"{checkpoint.path} has {loaded.tokenizer}'s vocabulary and names another tokenizer",
            do="use another checkpoint",
        )
    if changed := changed_since(loaded.model, shape.vocab_size, shape.context, checkpoint.state):
        warn(f"[MODEL-CHANGED] {checkpoint.path}: {changed}")
    return loaded


def _from_huggingface(path: Path, device: torch.device, source: str) -> LoadedModel:
    shape, weights = huggingface.read_folder(path)
    return replace(_loaded(shape, weights, device, source), folder=path)


def _loaded(
    shape: GPT2Shape,
    weights: dict[str, torch.Tensor],
    device: torch.device,
    source: str,
    step: int | None = None,
    documents_apart: bool = False,
) -> LoadedModel:
    known = {t.vocab_size: t for t in map(TOKENIZERS.load, TOKENIZERS.names())}
    if shape.vocab_size not in known:
        raise CheckpointError(
            "VOCABULARY",
            f"{source} has {shape.vocab_size:,} tokens; GPT-2's vocabulary has 50,257",
            do="name a model that reads GPT-2's vocabulary",
        )
    if bad := next((name for name, t in weights.items() if not _is_finite(t)), None):
        raise CheckpointError(
            "NOT-FINITE", f"{source}: {bad} is not all finite numbers", do="use another checkpoint"
        )
    tokenizer = known[shape.vocab_size]
    compute = Compute(document_mask=sdpa.document_mask, end_of_text=tokenizer.end_of_text)
    model = GPT2(shape, compute if documents_apart else None)
    load_weights(model, weights)
    return LoadedModel(model.to(device).eval(), tokenizer.name, source, step)


def _is_finite(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isfinite().all())
