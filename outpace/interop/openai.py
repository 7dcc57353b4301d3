"""OpenAI's own GPT-2: a folder with `hparams.json` and a TensorFlow checkpoint, as left by
openai/gpt-2's download_model.py (and by gpt-2-simple after fine-tuning). Needs no TensorFlow.

The names are GPT-2's in another spelling: `model/h0/attn/c_attn/w` is `h.0.attn.c_attn.weight`.
Linear maps are (1, in, out) there, (out, in) here; gains are `g`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError
from outpace.interop.declared import check_shape, check_tensors
from outpace.interop.tensor_bundle import Bundle
from outpace.interop.vocabulary import padded

HPARAMS, INDEX = "hparams.json", ".index"
MOST_JSON_BYTES = 1024 * 1024
NAME = re.compile(
    r"model/(?:(?P<top>wte|wpe)|(?:h(?P<layer>\d{1,4})/)?"
    r"(?P<part>ln_1|ln_2|ln_f|attn/c_attn|attn/c_proj|mlp/c_fc|mlp/c_proj)/(?P<kind>[wgb]))"
)
"""Names of the weights. Everything else in a checkpoint (an optimiser's moments) is skipped."""


def is_folder(path: Path) -> bool:
    """Whether `path` looks like OpenAI's model folder."""
    return (path / HPARAMS).is_file() and any(path.glob(f"*{INDEX}"))


def read_folder(path: Path) -> tuple[GPT2Shape, dict[str, torch.Tensor]]:
    """Read shape and weights under outpace's names, with the vocabulary zero-padded.
    CheckpointError if the folder is damaged, is not a GPT-2, or claims more than it contains."""
    import google_crc32c  # noqa: F401  # fail early if it is missing: reading needs it for checksums

    try:
        shape = _read_shape(path)
        bundle = Bundle(path / _prefix(path))
        theirs = {ours: name for name in bundle.entries if (ours := _our_name(name))}
        found = {ours: _our_size(bundle.entries[name].size) for ours, name in theirs.items()}
        check_tensors(shape, found, padded=False)
        weights = {ours: _ours(bundle.read(name)) for ours, name in theirs.items()}
        return shape, weights | {"wte.weight": padded(weights["wte.weight"], shape)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            "OPENAI",
            f"{path}: {what[:300]}",
            do="name a folder made by openai/gpt-2's download_model.py",
        ) from error


def _read_shape(path: Path) -> GPT2Shape:
    if (path / HPARAMS).stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"{HPARAMS} is too large")
    given: dict[str, Any] = json.loads((path / HPARAMS).read_text(encoding="utf-8"))
    keys = ("n_layer", "n_head", "n_embd", "n_ctx", "n_vocab")
    return check_shape(GPT2Shape(*(given[key] for key in keys)))


def _prefix(path: Path) -> str:
    """The checkpoint's name: the newest according to the file `checkpoint`, else the only one
    there."""
    names = sorted(file.name.removesuffix(INDEX) for file in path.glob(f"*{INDEX}"))
    record = path / "checkpoint"
    if len(names) > 1 and record.is_file() and record.stat().st_size <= MOST_JSON_BYTES:
        newest = re.search(r'^model_checkpoint_path: "(.*)"', record.read_text("utf-8"), re.M)
        if newest and newest[1] in names:
            return newest[1]
    if len(names) != 1:
        raise ValueError(f"it has {len(names)} checkpoints, and none is named as the newest")
    return names[0]


def _our_name(theirs: str) -> str | None:
    match = NAME.fullmatch(theirs)
    if match is None:
        return None
    if match["top"]:
        return f"{match['top']}.weight"
    where = f"h.{int(match['layer'])}." if match["layer"] else ""
    kind = "bias" if match["kind"] == "b" else "weight"
    return f"{where}{match['part'].replace('/', '.')}.{kind}"


def _our_size(theirs: tuple[int, ...]) -> tuple[int, ...]:
    return theirs[:0:-1] if len(theirs) == 3 and theirs[0] == 1 else theirs


def _ours(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[0].t().contiguous() if tensor.dim() == 3 else tensor
