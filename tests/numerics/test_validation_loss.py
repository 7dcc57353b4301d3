"""Validation loss: the fixed token range, against a loop written out, for any batch."""

import math

import numpy as np
import pytest
import torch

from outpace.config.presets import GPT2Shape
from outpace.evals.loss import validation_loss
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group, Ranks

CPU = torch.device("cpu")
TOKENS = np.random.default_rng(0).integers(0, 100, 1000).astype(np.uint16)


def read(start: int, out: np.ndarray) -> None:
    out[:] = TOKENS[start : start + len(out)]


@pytest.fixture(scope="module")
def model() -> GPT2:
    model = GPT2(GPT2Shape(1, 2, 32, 16, 100))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def score(model, tokens, **changes):
    options = {
        "context": 16,
        "token_bytes": [3] * 99 + [0],
        "precision": "no",
        "group": Group(Ranks(), CPU),
    }
    return validation_loss(model, read, tokens=tokens, **options | changes)


@pytest.mark.parametrize("tokens", [999, 400, 16, 5])
def test_it_is_the_mean_over_windows_that_do_not_overlap(model, tokens):
    width = min(16, tokens)
    nats, n_bytes = 0.0, 0
    for start in range(0, tokens - width + 1, width):
        row = torch.from_numpy(TOKENS[start : start + width + 1].astype(np.int64))
        with torch.no_grad():
            log_p = model(row[None, :-1])[0].double().log_softmax(-1)
        nats -= float(log_p[torch.arange(width), row[1:]].sum())
        n_bytes += sum(0 if t == 99 else 3 for t in row[1:].tolist())
    scored = tokens // width * width
    result = score(model, tokens)
    assert result.tokens_scored == scored
    assert result.loss == pytest.approx(nats / scored, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(nats / scored), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)


def test_it_does_not_depend_on_the_batch(model):
    losses = [score(model, 999, batch_size=b).loss for b in (1, 3, 8, 1000)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_it_can_be_stopped(model):
    assert score(model, 999, keep_going=lambda done: False) is None


def test_a_model_that_knows_nothing_scores_the_log_of_the_vocabulary():
    blank = GPT2(GPT2Shape(1, 2, 32, 16, 100))
    for p in blank.parameters():
        torch.nn.init.zeros_(p)
    assert score(blank.eval(), 999).loss == pytest.approx(math.log(100), rel=1e-6)
