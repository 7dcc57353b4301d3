"""Hugging Face GPT-2 folders, both ways, through one key map.

The names are the same except for the prefix `transformer.`; the four linear maps of a block are
stored transposed there (`Conv1D`), and the vocabulary is not padded.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError
from outpace.core.shapes import mismatch
from outpace.interop.declared import UNTIED, check_shape, check_tensors
from outpace.interop.vocabulary import cropped, padded
from outpace.model.gpt2 import GPT2

PREFIX = "transformer."
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
INDEX = WEIGHTS + ".index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
HEAD = "lm_head.weight"
LEFT_OUT = (HEAD, ".attn.bias", ".attn.masked_bias")
"""Suffixes of names to skip: the head, tied to wte, and buffers of old versions."""
FLOATS = ("F64", "F32", "F16", "BF16")
MOST_CONFIG_BYTES = 1024 * 1024
Tensors = dict[str, torch.Tensor]


def is_folder(path: Path) -> bool:
    """Whether `path` looks like a Hugging Face model folder."""
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in (WEIGHTS, INDEX))


def why_not_folder(path: Path) -> str:
    """Why a folder is not a model folder, as the end of a sentence; empty if it is nothing like
    one."""
    if (path / "pytorch_model.bin").is_file():
        return "; pytorch_model.bin is a pickle, which could run code: save it as safetensors"
    return f"; it has {CONFIG} but no {WEIGHTS}" if (path / CONFIG).is_file() else ""


def read_shape(path: Path) -> GPT2Shape:
    """Read the shape from config.json; CheckpointError for anything but plain GPT-2."""
    try:
        if (path / CONFIG).stat().st_size > MOST_CONFIG_BYTES:
            raise ValueError("it is too large")
        config: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        keys = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
        shape = check_shape(GPT2Shape(*(config[key] for key in keys)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _fault(
            path, f"config.json is not a GPT-2's ({type(error).__name__}: {error})"
        ) from error
    expected = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
        "add_cross_attention": False,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise _fault(path, f"{key} is {config[key]!r}; outpace's GPT-2 has {value!r}")
    if config.get("quantization_config") is not None:
        raise _fault(path, "it has a quantization_config; outpace reads floating-point weights")
    if config.get("n_inner") not in (None, 4 * shape.n_embd):
        raise _fault(path, f"n_inner is {config['n_inner']}, not 4 x n_embd")
    return shape


def read_folder(path: Path) -> tuple[GPT2Shape, Tensors]:
    """Read shape and weights (under outpace's names) from a folder that transformers saved. The
    header is compared with the shape before any tensor is read."""
    shape = read_shape(path)
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(safe_open(path / f, "pt")) for f in _weight_files(path)]
            where = {k: f for f in files for k in f.keys() if not k.endswith(LEFT_OUT)}  # noqa: SIM118
            found, types = {}, {}
            for full_name, file in where.items():
                name = full_name.removeprefix(PREFIX)
                part = file.get_slice(full_name)
                size = tuple(part.get_shape())
                found[name] = size[::-1] if name.endswith(TRANSPOSED) else size
                types[name] = part.get_dtype()
            check_tensors(shape, found, padded=False)
            if odd := [f"{name} is {t}" for name, t in types.items() if t not in FLOATS]:
                raise ValueError(f"{odd[0]}, which is not a floating-point type")
            theirs = {k: file.get_tensor(k) for k, file in where.items()}
            wte = next(t for k, t in theirs.items() if k.endswith("wte.weight"))
            for file in files:
                if HEAD in file.keys() and not torch.equal(file.get_tensor(HEAD), wte):  # noqa: SIM118
                    raise ValueError(UNTIED)
    except (OSError, SafetensorError, ValueError) as error:
        raise _fault(path, f"{WEIGHTS} cannot be used ({error})") from error
    return shape, from_huggingface(theirs, shape)


def _weight_files(path: Path) -> list[str]:
    """The single weight file, or the shards named by the index of a large model."""
    if (path / WEIGHTS).is_file():
        return [WEIGHTS]
    if (path / INDEX).stat().st_size > MOST_CONFIG_BYTES:
        raise ValueError(f"{INDEX} is too large")
    try:
        names = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if not all(SHARD.fullmatch(name) for name in names):
            raise ValueError("it names a file that is not a shard")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{INDEX}: {error}") from error
    return sorted(names)


def from_huggingface(theirs: Tensors, shape: GPT2Shape) -> Tensors:
    """Convert their tensors to ours: fp32, transposed back, the vocabulary zero-padded."""
    ours = {}
    for full_name, tensor in theirs.items():
        if full_name.endswith(LEFT_OUT):
            continue
        name = full_name.removeprefix(PREFIX)
        tensor = tensor.float()
        ours[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    return ours | {"wte.weight": padded(ours["wte.weight"], shape)}


def to_huggingface(ours: Tensors, shape: GPT2Shape) -> Tensors:
    """Convert our tensors to theirs, with the vocabulary's padding removed."""
    theirs = {}
    for name, tensor in ours.items():
        tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        theirs[PREFIX + name] = cropped(tensor, shape) if name == "wte.weight" else tensor
    return theirs


def transformers_model(weights: Tensors, shape: GPT2Shape) -> Any:
    """transformers' own GPT2LMHeadModel with these weights (outpace's names), in eval mode.
    CheckpointError if they are not those of a GPT-2."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(transformers_config(shape)).eval()
    theirs = to_huggingface(weights, shape)
    own = {name: tuple(t.shape) for name, t in model.state_dict().items() if name != HEAD}
    if faults := mismatch(own, {name: tuple(t.shape) for name, t in theirs.items()}):
        raise CheckpointError("CONVERT", f"transformers' GPT-2 cannot hold this model: {faults}")
    model.load_state_dict(theirs, strict=False)  # without the head, which is tied
    model.tie_weights()
    return model


def transformers_config(shape: GPT2Shape, **more: Any) -> Any:
    """transformers' GPT2Config for that shape, with `more` settings."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        bos_token_id=shape.vocab_size - 1,
        eos_token_id=shape.vocab_size - 1,
        architectures=["GPT2LMHeadModel"],
        **more,
    )


def as_transformers_reads(folder: Path) -> Any:
    """Load a folder's GPT-2 with transformers itself, in fp32."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def write_card(folder: Path, source: str, step: int | None) -> None:
    """Write the model card: what the model is, where it comes from, how it was checked."""
    of_step = "" if step is None else f", step {step:,}"
    card = f"""---
library_name: transformers
pipeline_tag: text-generation
---
A GPT-2, converted by outpace from `{Path(source).name}`{of_step}.
The logits of this folder, as transformers reads it, were compared with the source's.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("FOLDER")
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")
"""
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_tokenizer(folder: Path, context: int) -> None:
    """Write GPT-2's tokenizer files, so that AutoTokenizer loads the folder with nothing else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2TokenizerFast

    from outpace.tokenizer.gpt2 import END_OF_TEXT, merges, vocabulary

    pairs = [(a, b) for a, _, b in (pair.partition(" ") for pair in merges())]
    parts = Tokenizer(  # transformers 4 takes no `vocab` and `merges`
        models.BPE(vocabulary(), pairs, continuing_subword_prefix="", end_of_word_suffix="")
    )
    parts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts.decoder = decoders.ByteLevel()
    tokenizer = GPT2TokenizerFast(
        tokenizer_object=parts,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context,
    )
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def disagreement(ours: GPT2, theirs: Any) -> tuple[float, float]:
    """Largest absolute difference of logits, in fp32, on random tokens over up to 256 positions;
    and the largest logit, which tells how much of the difference is rounding."""
    generator = torch.Generator().manual_seed(0)
    vocab, length = ours.shape.vocab_size, min(ours.shape.context, 256)
    idx = torch.randint(0, vocab, (2, length), generator=generator)
    a = ours.eval().float()(idx)[..., :vocab]
    b = theirs.eval()(idx).logits.float()
    return float((a - b).abs().max()), float(a.abs().max())


def _fault(path: Path, what: str) -> CheckpointError:
    return CheckpointError("HF-FOLDER", f"{path}: {what}", do="name a folder with a plain GPT-2")
