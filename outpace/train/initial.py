"""The initial weights of a run: random ones, or those of the model that `--init_from` names, whose
shape the run takes, too.
"""

from dataclasses import replace

import torch

from outpace.config.load import SetBy
from outpace.config.presets import GPT2_CONTEXT, SIZES, GPT2Shape
from outpace.config.schema import RunConfig
from outpace.core.errors import UsageError
from outpace.interop.vocabulary import padded
from outpace.model.gpt2 import GPT2
from outpace.runtime.seeds import generator
from outpace.train.load_model import load_model


def take_shape(config: RunConfig, set_by: SetBy, begun: GPT2Shape | None = None) -> RunConfig:
    """The settings with the shape of the model that `--init_from` names, except where a flag or a
    recipe sets it. `begun` is the shape of a run that has already started, since the model may have
    been deleted or replaced. UsageError or CheckpointError if there is no such model."""
    m = config.model
    if not m.init_from:
        return config
    of = begun or load_model(m.init_from, torch.device("cpu")).model.shape
    left = {name for name, who in set_by.items() if who == "default"}
    if "context" in left:
        m = replace(m, context=min(m.context, of.context))
    if "vocab_multiple" in left:
        m = replace(m, vocab_multiple=of.vocab_multiple)
    if {"model_size", "n_layer", "n_head", "n_embd"} <= left:
        for name, size in SIZES.items():
            if (of.n_layer, of.n_head, of.n_embd) == (size.n_layer, size.n_head, size.n_embd):
                return replace(config, model=replace(m, model_size=name))
        m = replace(m, n_layer=of.n_layer, n_head=of.n_head, n_embd=of.n_embd)
    return replace(config, model=m)


def initialise(model: GPT2, init_from: str, seed: int) -> None:
    """Give `model` the initial weights of a run with these settings."""
    if init_from:
        _load(model, init_from)
    else:
        model.init_weights(generator(seed, "init"))


def _load(model: GPT2, reference: str) -> None:
    """Copy the weights that `--init_from` names. A shorter context takes the first positions; the
    padding of the vocabulary, if it differs, is zeros."""
    source = load_model(reference, torch.device("cpu")).model
    of, asked = source.shape, model.state_dict()
    if model.shape.context > of.context:
        raise UsageError(
            "CONTEXT",
            f"--context {model.shape.context} is beyond the {of.context} positions that "
            f"{reference} has learned",
            do=f"choose --context {min(of.context, GPT2_CONTEXT)} or less",
        )
    weights = source.state_dict()
    weights["wpe.weight"] = weights["wpe.weight"][: model.shape.context]
    if of.vocab_size == model.shape.vocab_size:
        weights["wte.weight"] = padded(weights["wte.weight"], model.shape)
    # With another number of heads, weights have the same shapes but another meaning.
    if of.n_head != model.shape.n_head or any(
        name not in weights or weights[name].shape != p.shape for name, p in asked.items()
    ):
        raise UsageError(
            "INIT-FROM",
            f"{reference} has another shape: {of.n_layer} layers, {of.n_head} heads, "
            f"{of.n_embd} channels, {of.vocab_size} tokens",
            do="leave --model_size, --n_layer, --n_head and --n_embd out, and train on a dataset "
            "of its vocabulary",
        )
    model.load_state_dict(weights)
