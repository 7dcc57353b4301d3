"""Hugging Face GPT-2 folders, both ways, through one key map.

The names are the same but for the prefix `transformer.`; the four linear maps of a block are stored
transposed there (`Conv1D`), and the vocabulary is not padded.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError
from outpace.model.gpt2 import GPT2

PREFIX = "transformer."
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
Tensors = dict[str, torch.Tensor]


def is_folder(path: Path) -> bool:
    """Whether `path` looks like a Hugging Face model folder."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read_shape(path: Path) -> GPT2Shape:
    """Shape in config.json; CheckpointError for anything but plain GPT-2."""
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text())
        shape = GPT2Shape(
            int(config["n_layer"]),
            int(config["n_head"]),
            int(config["n_embd"]),
            int(config["n_positions"]),
            int(config["vocab_size"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _fault(
            path, f"config.json is not GPT-2's ({type(error).__name__}: {error})"
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
    if config.get("n_inner") not in (None, 4 * shape.n_embd):
        raise _fault(path, f"n_inner is {config['n_inner']}, not 4 x n_embd")
    return shape


def read_folder(path: Path) -> tuple[GPT2Shape, Tensors]:
    """Shape and weights, under outpace's names, of a folder that transformers saved."""
    shape = read_shape(path)
    try:
        with safe_open(path / WEIGHTS, "pt"):
            pass
        theirs = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _fault(path, f"{WEIGHTS} cannot be read ({error})") from error
    return shape, from_huggingface(theirs, shape)


def from_huggingface(theirs: Tensors, shape: GPT2Shape) -> Tensors:
    """Their tensors as ours: fp32, transposed where theirs are, the vocabulary zero-padded."""
    ours = {}
    for full_name, tensor in theirs.items():
        name = full_name.removeprefix(PREFIX)
        if name in ("lm_head.weight",) or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # tied to wte, and buffers of old versions
        tensor = tensor.float()
        ours[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    wte = ours.get("wte.weight")
    if wte is not None:
        padding = wte.new_zeros(shape.padded_vocab_size - wte.size(0), wte.size(1))
        ours["wte.weight"] = torch.cat((wte, padding))
    return ours


def to_huggingface(ours: Tensors, shape: GPT2Shape) -> Tensors:
    """Our tensors as theirs, the padding of the vocabulary left off."""
    theirs = {}
    for name, tensor in ours.items():
        tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        theirs[PREFIX + name] = tensor[: shape.vocab_size] if name == "wte.weight" else tensor
    return theirs


def transformers_model(weights: Tensors, shape: GPT2Shape) -> Any:
    """transformers' own GPT2LMHeadModel holding these weights (outpace's names), in eval mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
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
    )
    model = GPT2LMHeadModel(config).eval()
    theirs = to_huggingface(weights, shape)
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise CheckpointError("CONVERT", f"transformers misses {missing}, rejects {unexpected}")
    model.tie_weights()
    return model


def write_tokenizer(folder: Path, context: int) -> None:
    """Write GPT-2's tokenizer files, so that AutoTokenizer loads the folder with nothing else."""
    from transformers import GPT2TokenizerFast

    from outpace.tokenizer.gpt2 import END_OF_TEXT, VOCAB_FOLDER

    merges = (VOCAB_FOLDER / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    tokenizer = GPT2TokenizerFast(
        vocab=json.loads((VOCAB_FOLDER / "encoder.json").read_text("utf-8")),
        merges=[tuple(line.split()) for line in merges if line],
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context,
    )
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def largest_logit_difference(ours: GPT2, theirs: Any, *, seed: int = 0) -> float:
    """Largest absolute difference of logits, in fp32, on random tokens over the whole context."""
    generator = torch.Generator().manual_seed(seed)
    vocab, length = ours.shape.vocab_size, min(ours.shape.context, 256)
    idx = torch.randint(0, vocab, (2, length), generator=generator)
    a = ours.eval().float()(idx)[..., :vocab]
    b = theirs.eval().float()(idx).logits
    return float((a - b).abs().max())


def _fault(path: Path, what: str) -> CheckpointError:
    return CheckpointError("HF-FOLDER", f"{path}: {what}", do="name a folder with a plain GPT-2")
