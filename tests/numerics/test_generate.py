"""Generation: cache against no cache, transformers' greedy text, and the sampling rules."""

import pytest
import torch

from outpace.config.presets import GPT2Shape
from outpace.generate.engine import complete
from outpace.generate.sampling import Sampling, draw, probabilities
from outpace.interop.huggingface import transformers_model
from outpace.model.cache import KVCache
from outpace.model.gpt2 import GPT2

SHAPE = GPT2Shape(2, 4, 64, 32, 500)


@pytest.fixture(scope="module")
def model() -> GPT2:
    model = GPT2(SHAPE)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.dim() >= 2 else 1.0)
    return model.eval()


def text(model, prompt, seed=0, **changes):
    options = {"max_new_tokens": 20, "how": Sampling(), "num_samples": 3} | changes
    return complete(model, prompt, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("how", [Sampling(0.0), Sampling(1.0, 0), Sampling(0.7, 20, 0.9)], ids=str)
@pytest.mark.parametrize("new", [20, 90], ids=["within", "past the context"])
def test_the_cache_changes_the_speed_and_not_the_tokens(model, how, new):
    prompt = [1, 2, 3, 4, 5]
    cached = text(model, prompt, how=how, max_new_tokens=new)
    assert cached == text(model, prompt, how=how, max_new_tokens=new, use_cache=False)
    assert all(len(sample) == new for sample in cached)


def test_greedy_equals_transformers(model):
    theirs = transformers_model(dict(model.state_dict()), SHAPE)
    prompt = [7, 8, 9]
    expected = theirs.generate(
        torch.tensor([prompt]),
        max_new_tokens=25,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    (got,) = text(model, prompt, how=Sampling(0.0), max_new_tokens=25, num_samples=1)
    assert prompt + got == expected[0].tolist()


def test_hidden_states_through_the_cache_equal_those_at_once(model):
    idx = torch.randint(0, 500, (2, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = model.hidden(idx)
        cache = KVCache(SHAPE, 2, torch.device("cpu"), torch.float32)
        pieces = [model.hidden(part, cache) for part in idx.split([11, 1, 7, 1, 10], dim=1)]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-4)


def test_the_seed_decides(model):
    assert text(model, [1], seed=1) == text(model, [1], seed=1) != text(model, [1], seed=2)
    a, b, c = text(model, [1], seed=1)
    assert a != b and b != c, "samples of one call differ"


def test_a_stop_token_ends_its_sample_alone(model):
    free = text(model, [3], how=Sampling(1.0, 0), max_new_tokens=30)
    stop = free[0][4]
    ended = text(model, [3], how=Sampling(1.0, 0), max_new_tokens=30, stop_token=stop)
    assert ended[0] == free[0][: free[0].index(stop)]
    for before, after in zip(free, ended, strict=True):
        assert before[: len(after)] == after


def test_padding_is_never_generated(model):
    for sample in text(model, [1], how=Sampling(100.0, 0), max_new_tokens=31, num_samples=50):
        assert max(sample) < 500


def test_top_k_top_p_and_temperature_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    p = logits.softmax(-1)
    assert torch.allclose(probabilities(logits, Sampling(1.0, 0)), p)
    top2 = p[:, :2] / p[:, :2].sum()
    assert torch.allclose(probabilities(logits, Sampling(1.0, 2))[:, :2], top2)
    assert (probabilities(logits, Sampling(1.0, 2))[:, 2:] == 0).all()
    nucleus = probabilities(logits, Sampling(1.0, 0, 0.7))  # .64 alone is short of .7, .88 is not
    assert torch.allclose(nucleus[:, :2], top2) and (nucleus[:, 2:] == 0).all()
    assert torch.allclose(probabilities(logits, Sampling(2.0, 0)), (logits / 2).softmax(-1))
    assert probabilities(logits, Sampling(0.0)).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[1.0, 0.0, -1.0]]).repeat(20000, 1)
    drawn = draw(logits, Sampling(1.0, 0), torch.Generator().manual_seed(0)).flatten()
    shares = torch.bincount(drawn, minlength=3) / 20000
    assert torch.allclose(shares, logits[0].softmax(-1), atol=0.015)
