"""nanoGPT's `ckpt.pt`, in. It is a pickle: read with `weights_only`, and only after the zip's own
checksums agree, which `torch.load` does not look at.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError

PREFIXES = ("_orig_mod.", "transformer.")
TRUE_VOCAB_SIZE = 50257
"""nanoGPT's default pads GPT-2's vocabulary to 50304 and keeps no record of the true size."""


def read_checkpoint(path: Path) -> tuple[GPT2Shape, dict[str, torch.Tensor], int]:
    """Shape, weights under outpace's names, and the number of iterations done."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise _fault(path, f"{damaged} inside is damaged")
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        a, theirs = saved["model_args"], saved["model"]
        if not a["bias"]:
            raise _fault(path, "it was trained with bias=False, which GPT-2 has not")
        vocab = min(int(a["vocab_size"]), TRUE_VOCAB_SIZE)
        shape = GPT2Shape(a["n_layer"], a["n_head"], a["n_embd"], a["block_size"], vocab)
        iterations = int(saved["iter_num"])
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, KeyError, RuntimeError) as error:
        raise _fault(path, f"it is not nanoGPT's ({type(error).__name__})") from error
    weights = {}
    for full_name, tensor in theirs.items():
        name = full_name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if name != "lm_head.weight":  # tied to wte
            weights[name] = tensor
    return shape, weights, iterations


def _fault(path: Path, what: str) -> CheckpointError:
    return CheckpointError("NANOGPT", f"{path}: {what}", do="name a ckpt.pt that nanoGPT saved")
