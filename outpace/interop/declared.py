"""Checks of what a model file declares, before anything is allocated for it: the numbers of a
shape, and the shapes of the tensors. Every fault is a one-sentence ValueError.
"""

from dataclasses import fields

import torch

from outpace.config.check import RANGES
from outpace.config.presets import GPT2Shape
from outpace.core.shapes import Sizes, mismatch
from outpace.model.gpt2 import GPT2

MOST_VOCABULARY = 10_000_000
UNTIED = "lm_head.weight is not wte.weight, and GPT-2's head is tied to its embedding"
PLAIN = ("n_layer", "n_head", "n_embd", "context", "vocab_size", "dropout", "vocab_multiple")
LIMITED = ("n_layer", "n_head", "n_embd", "context", "vocab_multiple")


def check_shape(shape: GPT2Shape) -> GPT2Shape:
    """Return `shape` if its numbers, of whatever type the file gave, make a possible GPT-2."""
    limits = {name: RANGES[name].most for name in LIMITED}
    for name, most in {**limits, "vocab_size": MOST_VOCABULARY}.items():
        value = getattr(shape, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {str(value)[:40]}, not a number from 1 to {most:,}")
    if shape.n_embd % shape.n_head:
        raise ValueError(f"n_head {shape.n_head} does not divide n_embd {shape.n_embd}")
    if type(shape.dropout) not in (int, float) or not 0 <= shape.dropout < 1:
        raise ValueError(f"dropout is {str(shape.dropout)[:40]}, not from 0 to below 1")
    return shape


def why_not_plain(shape: GPT2Shape) -> str | None:
    """How a model differs from OpenAI's GPT-2, the only one that other programs' formats can hold;
    None for a plain GPT-2. Every field beyond `PLAIN` is a variant of ours."""
    for field in fields(shape):
        value = getattr(shape, field.name)
        if field.name not in PLAIN and value != field.default:
            return f"{field.name} is {value!r}, and GPT-2 has {field.default!r}"
    return None


def check_tensors(shape: GPT2Shape, found: Sizes, *, padded: bool) -> None:
    """ValueError unless the tensors are exactly the parameters of a GPT-2 of that (checked) shape,
    each with its size; `padded` says whether the vocabulary is padded."""
    layers = {name.split(".")[1] for name in found if name.startswith("h.")}
    if len(layers) != shape.n_layer:
        raise ValueError(f"it has {len(layers)} layers, n_layer is {shape.n_layer}")
    with torch.device("meta"):  # sizes without memory
        expected = {name: tuple(p.shape) for name, p in GPT2(shape).named_parameters()}
    if not padded:
        expected["wte.weight"] = (shape.vocab_size, shape.n_embd)
    if faults := mismatch(expected, found):
        raise ValueError(faults)
