"""A model by reference: a run, a checkpoint, a Hugging Face folder, nanoGPT's ckpt.pt, hf:NAME."""

from dataclasses import dataclass
from pathlib import Path

import torch

from outpace.checkpoint import store
from outpace.checkpoint.state import load_weights
from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError, NetworkError, UsageError
from outpace.core.runfolder import RunFolder
from outpace.interop import huggingface, nanogpt
from outpace.model.gpt2 import GPT2
from outpace.tokenizer.bytes_ import BytesTokenizer
from outpace.tokenizer.gpt2 import Gpt2Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, and where it came from."""

    model: GPT2
    tokenizer: str
    source: str
    step: int | None = None


def load_model(reference: str, device: torch.device) -> LoadedModel:
    """Find, verify and load what `reference` names."""
    if reference.startswith("hf:"):
        return _from_huggingface(_hub_folder(reference.removeprefix("hf:")), device, reference)
    path = Path(reference)
    if path.is_file() and path.suffix == ".pt":
        shape, weights, iterations = nanogpt.read_checkpoint(path)
        model = GPT2(shape)
        load_weights(model, weights)
        return LoadedModel(model.to(device).eval(), "gpt2", reference, iterations)
    if not path.is_dir():
        raise UsageError(
            "NO-MODEL",
            f"there is no folder {reference}",
            do="name a run, a checkpoint or a Hugging Face folder, or hf:NAME",
        )
    if (path / store.STATE).exists():
        return _from_checkpoint(store.load(path), device)
    if huggingface.is_folder(path):
        return _from_huggingface(path, device, reference)
    if checkpoint := store.latest(RunFolder(path).checkpoints, set_aside=False):
        return _from_checkpoint(checkpoint, device)
    raise CheckpointError(
        "NO-MODEL",
        f"{reference} holds neither a checkpoint nor a Hugging Face GPT-2",
        do="name a run with a saved checkpoint, or a folder with config.json and model.safetensors",
    )


def _from_checkpoint(checkpoint: store.Checkpoint, device: torch.device) -> LoadedModel:
    state = checkpoint.state
    model = GPT2(GPT2Shape(**state["shape"]))
    load_weights(model, checkpoint.model(torch.device("cpu")))
    return LoadedModel(
        model.to(device).eval(), state["tokenizer"], str(checkpoint.path), checkpoint.step
    )


def _from_huggingface(path: Path, device: torch.device, source: str) -> LoadedModel:
    shape, weights = huggingface.read_folder(path)
    tokenizer = {t.vocab_size: t.name for t in (Gpt2Tokenizer, BytesTokenizer)}
    if shape.vocab_size not in tokenizer:
        raise CheckpointError(
            "VOCABULARY",
            f"{source} has {shape.vocab_size:,} tokens; GPT-2's vocabulary has 50,257",
            do="name a model that reads GPT-2's vocabulary",
        )
    model = GPT2(shape)
    load_weights(model, weights)
    return LoadedModel(model.to(device).eval(), tokenizer[shape.vocab_size], source)


def _hub_folder(name: str) -> Path:
    """Download the two files of a hub model, or take them from the local cache."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise UsageError(
            "NO-HUB", "hf:NAME needs huggingface_hub", do="pip install 'outpace[interop]'"
        ) from error
    try:
        files = [huggingface.CONFIG, huggingface.WEIGHTS]
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise NetworkError(
            "HUB",
            f"cannot fetch {name} from the hub ({type(error).__name__})",
            do="check the name and the network, or give a local folder",
        ) from error
