"""Generation: cache against no cache, transformers' greedy text, and the sampling rules."""

import copy
import io
import itertools
import json
import math

import pytest
import torch

from outpace.bench.generation import random_model
from outpace.cli.main import main
from outpace.config.presets import GPT2Shape
from outpace.core.errors import UsageError
from outpace.generate.engine import complete, generate
from outpace.generate.samples import Sample, sample
from outpace.generate.sampling import Sampling, draw, probabilities
from outpace.generate.text import TextStream
from outpace.generate.weights import int8, with_weights
from outpace.interop.huggingface import transformers_model
from outpace.model import matrices
from outpace.model.cache import KVCache
from outpace.model.gpt2 import GPT2, MLP
from outpace.model.matrices import for_inference, why_not_packed
from outpace.ops import mlp
from outpace.ops.attention import sdpa
from outpace.tokenizer import get_tokenizer
from outpace.tokenizer.bytes_ import BytesTokenizer

SHAPE = GPT2Shape(2, 4, 64, 32, 500)


@pytest.fixture(scope="module")
def model() -> GPT2:
    return random_model(SHAPE)


def text(model, prompt, seed=0, **changes):
    options = {"max_new_tokens": 20, "how": Sampling(), "num_samples": 3} | changes
    return complete(model, prompt, generator=torch.Generator().manual_seed(seed), **options)


def test_a_prompt_has_a_token(model):
    with pytest.raises(ValueError, match="at least one token"):
        text(model, [])


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


def test_keys_in_the_cache_have_the_type_of_queries(model, monkeypatch):
    """cuDNN's kernel would read fp32 as if it were bf16."""
    seen = []

    def attend(q, k, v, **how):
        seen.append({q.dtype, k.dtype, v.dtype})
        return sdpa.attend(q, k, v, **how)

    for block in model.h:
        monkeypatch.setattr(block.attn, "attend", attend)
    with torch.autocast("cpu", torch.bfloat16):
        text(model, [1, 2, 3])
    assert seen and all(types == {torch.bfloat16} for types in seen)


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
    for ids in text(model, [1], how=Sampling(100.0, 0), max_new_tokens=31, num_samples=50):
        assert max(ids) < 500


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
    uniform = torch.rand(20000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits, Sampling(1.0, 0), uniform).flatten()
    shares = torch.bincount(drawn, minlength=3) / 20000
    assert torch.allclose(shares, logits[0].softmax(-1), atol=0.015)


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53])
def test_what_is_cut_is_never_drawn_at_either_end(uniform):
    logits = torch.tensor([[-5.0, 2.0, 1.9, -5.0, -5.0]])
    for how in (Sampling(1.0, 2), Sampling(1.0, 0, 0.9), Sampling(0.5, 2)):
        number = torch.tensor([[uniform]], dtype=torch.float64)
        assert int(draw(logits, how, number)) in (1, 2)


@pytest.mark.parametrize(
    "logits", [[-80.0, 90.0, 100.0, -math.inf], [-3e38, 1e38, 3e38, -math.inf]]
)
def test_extremes_leave_the_likeliest(logits):
    """Temperatures whose quotients are beyond fp32, and a top_p that is 0 in it."""
    uniform = torch.tensor([[0.5]], dtype=torch.float64)
    extremes = (1e-300, 1e-45, 1e-38, 1e-30)
    for how in (*(Sampling(t, 0) for t in extremes), *(Sampling(0.8, 0, p) for p in extremes)):
        assert probabilities(torch.tensor([logits]), how).tolist() == [[0.0, 0.0, 1.0, 0.0]]
        assert int(draw(torch.tensor([logits]), how, uniform)) == 2


@pytest.mark.parametrize("how", [Sampling(0.0), Sampling(1.0, 50)], ids=str)
def test_a_sample_is_the_same_alone_and_among_others(model, how):
    together = text(model, [5, 6], how=how, num_samples=4, max_new_tokens=40)
    assert text(model, [5, 6], how=how, num_samples=1, max_new_tokens=40)[0] == together[0]
    assert text(model, [5, 6], how=how, num_samples=2, max_new_tokens=40) == together[:2]


def test_generation_stops_or_slides_where_the_context_ends(model):
    def steps(**options):
        generator = torch.Generator().manual_seed(0)
        return list(generate(model, [1, 2], max_new_tokens=50, how=Sampling(0.0),
                             generator=generator, **options))  # fmt: skip

    stopped, slid = steps(beyond_context="stop"), steps()
    assert len(slid) == 50
    assert len(stopped) == 32 - 2 + 1, "the last token is predicted from a full context"
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(stopped, slid, strict=False))


def test_probabilities_are_the_models_own(model):
    """Against a softmax of the uncached model over the whole text."""
    tokenizer = BytesTokenizer()
    small = GPT2(GPT2Shape(2, 2, 32, 32, 257))
    small.init_weights(torch.Generator().manual_seed(3))
    samples = [Sample(tokenizer), Sample(tokenizer)]
    prompt = tokenizer.encode("ab")
    run = sample(small.eval(), prompt, samples, max_new_tokens=9, how=Sampling(0.7, 40),
                 generator=torch.Generator().manual_seed(1), alternatives=3)  # fmt: skip
    assert list(run) == list(range(10))
    for one in samples:
        ids = [t.id for t in one.tokens]
        with torch.no_grad():
            p = small(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].softmax(-1)
        for token, row in zip(one.tokens, p, strict=True):
            assert token.probability == pytest.approx(float(row[token.id]), rel=1e-4)
            assert token.rank == 1 + int((row > row[token.id]).sum())
            best = row.topk(3)
            assert [x for _, x in token.top] == pytest.approx(best.values.tolist(), rel=1e-4)
            assert [t for t, _ in token.top] == [tokenizer.decode([i]) for i in best.indices]
        assert one.ended_by == "max_new_tokens"
        assert "".join(one.pieces) == tokenizer.decode(ids)


# Text while it comes.


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_text_comes_in_whole_characters_and_ends_up_the_same(name):
    text = "naïve café — 🙂🙃 日本語 e\u0301 done"
    tokenizer = get_tokenizer(name)
    stream = TextStream(tokenizer)
    pieces = [stream.feed(token) for token in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == text
    assert "" in pieces, "a character of several tokens waits for its last"
    broken = TextStream(tokenizer)
    shown = "".join(map(broken.feed, tokenizer.encode("a🙂")[:-1]))
    assert (shown, broken.finish()) == ("a", "\ufffd")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["stop"], "abc st op sto "), (["sto"], "abc st op "), (["zz", "op"], "abc st "),
        (["never"], "abc st op sto stop after"), (["ß", "after!"], "abc st op sto stop after"),
        (["a"], ""), (["st op", "c s"], "ab"), ([" stop after more"], "abc st op sto stop after"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_a_stop_string_ends_the_text_before_it_wherever_tokens_are_cut(name, stop, expected):
    tokenizer = get_tokenizer(name)
    stream, shown = TextStream(tokenizer, stop), ""
    for token in tokenizer.encode("abc st op sto stop after"):
        shown += stream.feed(token)
        assert expected.startswith(shown), "what was shown is not taken back"
    assert shown + stream.finish() == expected
    assert stream.stopped == any(s in "abc st op sto stop after" for s in stop)


def test_the_end_of_the_text_lets_go_of_what_was_held_back():
    tokenizer = BytesTokenizer()
    stream = TextStream(tokenizer, ["stop"])
    assert "".join(map(stream.feed, tokenizer.encode("a sto"))) == "a "
    assert stream.feed(tokenizer.end_of_text) == "sto"
    assert stream.stopped
    assert stream.feed(65) == stream.finish() == ""


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes, as a folder."""
    small = GPT2(GPT2Shape(1, 2, 32, 64, 257))
    small.init_weights(torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("sample") / "hf"
    transformers_model(dict(small.state_dict()), small.shape).save_pretrained(path)
    return path


def test_the_command_shows_what_its_json_holds(folder, capsys):
    argv = ["sample", str(folder), "--prompt", "é=", "--max_new_tokens", "30", "--num_samples", "3"]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ended_by"] == ["max_new_tokens"] * 3
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert shown == show_of(result["texts"])
    assert main([*argv, "--json", "--show_probabilities", "--num_samples", "1"]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"][0]
    assert len(tokens) == 30
    assert all(len(t["top"]) == 5 and 0 < t["probability"] <= 1 for t in tokens)
    assert main([*argv, "--show_probabilities", "--num_samples", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "é="
    assert len(lines) == 31
    assert float(lines[1].split()[0]) == pytest.approx(tokens[0]["probability"], abs=1e-4)


def show_of(texts):
    """What the terminal gets: control characters are shown, not obeyed."""
    out = "".join(f"--- {i + 1}\n{t}\n" for i, t in enumerate(texts))
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in out)


def test_the_prompt_comes_from_a_file_or_standard_input(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "p.txt").write_text("from a file\n")
    base = ["sample", str(folder), "--max_new_tokens", "1", "--json"]

    def first():
        return json.loads(capsys.readouterr().out)["texts"][0]

    assert main([*base, "--prompt_file", str(tmp_path / "p.txt")]) == 0
    assert first().startswith("from a file\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("piped é".encode())))
    assert main([*base, "--prompt_file", "-"]) == 0
    assert first().startswith("piped é")
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    for name, code in (("bad", 3), ("none", 3), (".", 3)):
        assert main([*base, "--prompt_file", str(tmp_path / name)]) == code
    assert main([*base, "--prompt_file", "-", "--prompt", "x"]) == 2
    assert main([*base, "--stop", ""]) == 2


def test_stops_and_the_end_of_the_context_are_said(folder, capsys):
    base = ["sample", str(folder), "--prompt", "x", "--temperature", "0", "--json"]
    assert main([*base, "--max_new_tokens", "100", "--beyond_context", "stop"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["ended_by"] == ["context"]
    assert "the context of 64; then the text ends" in err
    end = result["texts"][0][3:5]
    assert main([*base, "--max_new_tokens", "20", "--stop", end]) == 0
    out, err = capsys.readouterr()
    stopped = json.loads(out)
    assert stopped["ended_by"] == ["stop"]
    assert stopped["texts"] == [result["texts"][0][: 1 + result["texts"][0][1:].index(end)]]
    assert err == ""


def test_the_first_text_is_shown_while_it_comes(folder, monkeypatch):
    """Each piece reaches the reader before the next token is computed."""
    events = []
    monkeypatch.setattr("outpace.cli.sample.show", lambda text, end="": events.append(text))
    forward = GPT2.hidden

    def hidden(self, *arguments):
        if len(arguments) > 1:  # with a cache
            events.append(None)
        return forward(self, *arguments)

    monkeypatch.setattr(GPT2, "hidden", hidden)
    argv = ["sample", str(folder), "--prompt", "ab", "--max_new_tokens", "4", "--num_samples", "2"]
    assert main(argv) == 0
    computed = [i for i, event in enumerate(events) if event is None]
    assert len(computed) == 4
    assert all(b - a == 2 for a, b in itertools.pairwise(computed))


# int8, and the benchmark.


def test_int8_is_near_and_leaves_the_model_alone(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = int8(model)
    idx = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, near = model(idx)[..., :500], small(idx)[..., :500]
        assert small(idx)[..., 500:].max() == float("-inf")
    assert 0 < (exact - near).abs().max() < 0.2 * exact.std() * 5
    assert torch.corrcoef(torch.stack((exact.flatten(), near.flatten())))[0, 1] > 0.99
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    how = {"how": Sampling(0.0), "max_new_tokens": 40, "num_samples": 2}
    assert text(small, [1, 2], **how) == text(small, [1, 2], **how)


needs_packing = pytest.mark.skipif(
    why_not_packed(GPT2(SHAPE)) is not None, reason="no packed weights on this machine"
)


@needs_packing
def test_packed_weights_change_nothing_but_rounding_and_leave_the_model_alone(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = for_inference(model)
    assert fast is not model and fast.wte is model.wte, "embeddings are shared, not copied"
    idx = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, near = copy.deepcopy(model).double()(idx), fast(idx)
        assert (exact[..., :500] - near[..., :500]).abs().max() < 1e-4
        assert near[..., 500:].max() == float("-inf")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for how in (Sampling(0.0), Sampling(0.9)):
        assert text(fast, [1, 2], how=how) == text(model, [1, 2], how=how)
    assert for_inference(model, "bf16") is model, "autocast has its own types"


@needs_packing
def test_packed_weights_go_with_whatever_else_a_model_has(model):
    model = copy.deepcopy(model)
    model.ln_f = torch.nn.RMSNorm(SHAPE.n_embd)
    model.h[0].ln_1 = torch.nn.Sequential(model.h[0].ln_1, torch.nn.LayerNorm(SHAPE.n_embd))
    model.h[0].attn.q_norm = torch.nn.RMSNorm(8)
    model.h[0].attn.register_buffer("cos", torch.ones(8))
    fast = for_inference(model)
    assert fast is not model and fast.h[0].attn.q_norm is model.h[0].attn.q_norm
    assert fast.h[0].attn.cos is model.h[0].attn.cos
    idx = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(idx) - fast(idx))[..., :500].abs().max() < 1e-4


@needs_packing
def test_an_activation_that_onednn_has_no_name_for_follows_the_product(model, monkeypatch):
    for module in (mlp, matrices):
        monkeypatch.setattr(module, "gelu", lambda x: torch.relu(x).square())
    idx = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(idx) - for_inference(model)(idx))[..., :500].abs().max() < 1e-4


def relu_squared(self, x):
    return self.c_proj(torch.relu(self.c_fc(x)).square())


def soft_capped(self, hidden):
    return 5 * torch.tanh(plain_logits(self, hidden) / 5)


plain_logits = GPT2.logits


@needs_packing
@pytest.mark.parametrize(
    ("kind", "method", "changed"), [(MLP, "forward", relu_squared), (GPT2, "logits", soft_capped)]
)
def test_a_model_that_is_changed_elsewhere_is_not_computed_as_before(
    model, monkeypatch, kind, method, changed
):
    monkeypatch.setattr(kind, method, changed)
    assert for_inference(model) is model
    for weights in ("bfloat16", "int8"):
        with pytest.raises(UsageError, match="MLP or head"):
            with_weights(model, weights)


@needs_packing
def test_bfloat16_weights_are_near(model):
    small = with_weights(model, "bfloat16")
    idx = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, near = model(idx)[..., :500], small(idx)[..., :500]
    assert near.dtype == torch.float32
    assert torch.corrcoef(torch.stack((exact.flatten(), near.flatten())))[0, 1] > 0.999


@pytest.mark.parametrize("how", [Sampling(0.0), Sampling(1.0, 0)], ids=str)
def test_prompts_of_their_own_give_what_each_gives_alone(model, how):
    prompts = torch.tensor([[1, 2, 3], [9, 8, 7], [4, 4, 4]])

    def rows(prompts, **options):
        steps = generate(model, prompts, max_new_tokens=40, how=how,
                         generator=torch.Generator().manual_seed(4), **options)  # fmt: skip
        return torch.stack([step.tokens for step in steps], dim=1)

    together = rows(prompts)
    assert torch.equal(together, rows(prompts, use_cache=False))
    assert torch.equal(together[:1], rows(prompts[:1]))
    if how.temperature == 0:
        assert all(torch.equal(together[i : i + 1], rows(prompts[i : i + 1])) for i in range(3))


def test_bench_generate_compares_tokens_and_says_the_bound(folder, tmp_path, capsys):
    out = tmp_path / "r.json"
    argv = ["bench", "generate", "--model", str(folder), "--batch", "1", "3", "--rounds", "2"]
    assert main([*argv, "--prompt_tokens", "5", "--new_tokens", "8", "--output", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["model"] == folder.name
    assert result["batches"].keys() == {"1", "3"}
    for batch in result["batches"].values():
        assert batch["tokens_equal_transformers"]["outpace"] == 1
        assert batch["ms_per_step"]["outpace"]["n"] == 2
        assert batch["times_transformers"]["transformers"] == 1
    assert result["bound_of_fp32_ms"] > 0
    assert result["weights_read_a_step_bytes"] == 4 * (384 * 32 + 12 * 32 * 32 + 13 * 32 + 2 * 32)
    assert 0 <= result["agreement"]["int8"]["same_likeliest_token"] <= 1
    assert "times" in capsys.readouterr().out
    assert main([*argv, "--new_tokens", "64"]) == 2
    assert main([*argv[:-4], "--batch", "0"]) == 2
