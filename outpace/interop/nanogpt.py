"""nanoGPT's `ckpt.pt`, both ways. It is a pickle inside a zip, so a file to be read is not trusted:
first the zip is checked, then the names of everything the pickle would call, and only then is it
passed to `torch.load`, with `weights_only`. No tensor may claim more bytes than the file has.

nanoGPT uses the exact GELU, GPT-2 a tanh approximation of it: the weights are the same both ways,
the logits nearly.
"""

import os
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from outpace.config.presets import GPT2_VOCAB, GPT2Shape
from outpace.core.errors import CheckpointError
from outpace.interop.declared import UNTIED, check_shape, check_tensors
from outpace.interop.vocabulary import cropped, padded
from outpace.model.gpt2 import GPT2

NAME = "ckpt.pt"
"""The file's name in nanoGPT's out_dir."""
PREFIXES = ("_orig_mod.", "transformer.")
OLDEST_TORCH = (2, 10)
"""In older versions a file can make `weights_only` loading run code (CVE-2025-32434,
CVE-2026-24747)."""
MOST_PICKLE_BYTES = 64 * 1024 * 1024
"""GPT-2 XL's pickle, with optimiser state, is below 1 MB."""
CALLED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage"
)
"""What nanoGPT's pickle calls. torch allows more, including `bytearray`, which can allocate any
size."""
CALLS_UNSEEN = ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID")
"""Pickle operations that torch.save does not write and that could call something else."""


def read_checkpoint(path: Path) -> tuple[GPT2Shape, dict[str, torch.Tensor], int]:
    """Read the shape, the weights under outpace's names, and the number of iterations done.
    CheckpointError for a file that is damaged, is not nanoGPT's, or claims more than it contains.
    """
    if (version := _torch_version()) < OLDEST_TORCH:
        raise CheckpointError(
            "OLD-TORCH",
            f"PyTorch {'.'.join(map(str, version))} does not read foreign .pt files safely",
            do="pip install 'torch>=2.11', or convert the file to a Hugging Face folder elsewhere",
        )
    try:
        _check_zip(path)
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        a = saved["model_args"]
        vocab = min(a["vocab_size"], GPT2_VOCAB)  # nanoGPT may pad it, and does not record that
        shape = check_shape(
            GPT2Shape(a["n_layer"], a["n_head"], a["n_embd"], a["block_size"], vocab)
        )
        weights = _weights(saved["model"])
        wte = weights.pop("wte.weight")
        if len(wte) != a["vocab_size"]:
            raise ValueError(
                f"it declares a vocabulary of {a['vocab_size']}, but has {len(wte)} rows"
            )
        if not torch.equal(weights.pop("lm_head.weight", wte), wte):
            raise ValueError(UNTIED)
        weights["wte.weight"] = cropped(wte, shape)
        if not a["bias"]:
            if biases := sorted(name for name in weights if name.endswith(".bias")):
                raise ValueError(f"it declares bias=False, but has {biases[0][:80]}")
            weights |= _biases(shape)
        check_tensors(shape, {k: tuple(t.shape) for k, t in weights.items()}, padded=False)
        weights["wte.weight"] = padded(wte, shape)
        return shape, weights, int(saved["iter_num"])
    except ValueError as error:
        raise _fault(path, str(error)) from error
    except (
        OSError, zipfile.BadZipFile, zipfile.LargeZipFile, pickle.UnpicklingError, LookupError,
        ArithmeticError, RuntimeError, TypeError, AttributeError, EOFError, MemoryError,
        RecursionError, AssertionError, NotImplementedError,
    ) as error:  # fmt: skip
        raise _fault(path, f"it is not nanoGPT's ({type(error).__name__})") from error


def write_checkpoint(
    path: Path, weights: dict[str, torch.Tensor], shape: GPT2Shape, iterations: int
) -> None:
    """Write weights (outpace's names) as nanoGPT's train.py would, for its sample.py and for
    `--init_from=resume`, which continues with a fresh optimiser. Flushed to the disk."""
    model = {f"transformer.{name}": tensor for name, tensor in weights.items()}
    model["transformer.wte.weight"] = cropped(weights["wte.weight"], shape).clone()
    matrices = [p for p in model.values() if p.dim() >= 2]  # before the head, which is wte again
    others = [p for p in model.values() if p.dim() < 2]
    model["lm_head.weight"] = model["transformer.wte.weight"]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    arguments = {
        "n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd,
        "block_size": shape.context, "bias": True, "vocab_size": shape.vocab_size, "dropout": 0.0,
    }  # fmt: skip
    saved = {
        "model": model,
        "model_args": arguments,
        "optimizer": torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95)).state_dict(),
        "iter_num": iterations,
        "best_val_loss": 1e9,  # the initial value in its train.py
    }
    with open(path, "wb") as file:
        torch.save(saved, file)
        file.flush()
        os.fsync(file.fileno())


def _check_zip(path: Path) -> None:
    """ValueError unless the zip has only stored members, once each, together no larger than the
    file, all with the right checksum (`torch.load` does not check it), and one pickle that calls
    nothing but `CALLED`."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
            raise ValueError("something inside is compressed or encrypted, which torch never does")
        if len({m.filename for m in members}) < len(members):
            raise ValueError("two files inside have the same name")
        if sum(m.file_size for m in members) > path.stat().st_size:
            raise ValueError("the files inside claim to be larger than the whole")
        pickles = [m for m in members if m.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE_BYTES:
            raise ValueError("it has no single data.pkl of a sensible size")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} inside is damaged")
        for operation, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if operation.name in CALLS_UNSEEN or (
                operation.name == "GLOBAL" and not CALLED.fullmatch(str(argument))
            ):
                raise ValueError(f"it would call {str(argument or operation.name)[:80]!r}")


def _weights(theirs: Any) -> dict[str, torch.Tensor]:
    """Tensors under outpace's names, each checked to have as many bytes as its shape needs."""
    weights = {}
    for full_name, tensor in theirs.items():
        name = str(full_name)
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{name[:80]} is not a tensor of floating-point numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name[:80]} claims to be {tuple(tensor.shape)} but has fewer bytes")
        weights[name] = tensor
    return weights


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])


def _biases(shape: GPT2Shape) -> dict[str, torch.Tensor]:
    """Zeros for the biases that a model trained without them lacks: it computes the same."""
    with torch.device("meta"):
        named = GPT2(shape).named_parameters()
    return {name: torch.zeros(p.shape) for name, p in named if name.endswith(".bias")}


def _fault(path: Path, what: str) -> CheckpointError:
    return CheckpointError("NANOGPT", f"{path}: {what}", do="name a ckpt.pt that nanoGPT saved")
