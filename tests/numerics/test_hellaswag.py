"""HellaSwag answers, one by one, against an independent scorer over transformers' model."""

import json
import math

import pytest
import torch
from conftest import outpace

from outpace.checkpoint.state import load_weights
from outpace.config.presets import GPT2Shape
from outpace.evals.scoring import Request, log_likelihoods
from outpace.evals.tasks import hellaswag
from outpace.interop import huggingface
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group, Ranks
from outpace.tokenizer import get_tokenizer

CPU = torch.device("cpu")
SHAPE = GPT2Shape(2, 4, 64, 1024, 50257)


@pytest.fixture(scope="module")
def model() -> GPT2:
    """Wide random weights, so that scores differ clearly."""
    model = GPT2(SHAPE)
    g = torch.Generator().manual_seed(0)
    model.init_weights(g)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.mul_(6.0)
        model.wte.weight[50257:] = 0
    return model.eval()


def independent_scores(theirs, tokenizer, row: dict) -> tuple[list[float], list[float]]:
    """A plain reading of the completion protocol: one forward pass an ending, no batching, no
    padding; logits of transformers' model and cross-entropy by hand."""
    sums, means = [], []
    context = tokenizer.encode(row["ctx"])
    for ending in row["endings"]:
        tokens = tokenizer.encode(" " + ending)
        ids = torch.tensor([context + tokens])
        with torch.no_grad():
            logits = theirs(ids).logits[0].double()
        total = 0.0
        for i, token in enumerate(tokens):
            row_logits = logits[len(context) + i - 1]
            total += float(row_logits[token] - row_logits.logsumexp(0))
        sums.append(total)
        means.append(total / len(tokens))
    return sums, means


def test_every_prediction_equals_the_independent_scorer(model, shared):
    import tiktoken

    from outpace.tokenizer.gpt2 import _encoding

    assert isinstance(_encoding(), tiktoken.Encoding)
    path = shared / "hellaswag" / "hellaswag_val.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
    questions = hellaswag.subset(hellaswag.load(path), 240)
    by_ind = {(r["ind"], r["ctx"]): r for r in rows}
    tokenizer = get_tokenizer("gpt2")
    theirs = huggingface.transformers_model(dict(model.state_dict()), SHAPE)

    answers = hellaswag.answer(model, tokenizer, questions, device=CPU, precision="no")
    assert answers is not None and len({(q.ind, q.ctx) for q in questions}) == 240
    for q, a in zip(questions, answers, strict=True):
        sums, means = independent_scores(theirs, tokenizer, by_ind[q.ind, q.ctx])
        assert a.log_likelihoods == pytest.approx(sums, abs=1e-3)
        assert a.pred == max(range(4), key=sums.__getitem__)
        assert a.pred_norm == max(range(4), key=means.__getitem__)
        assert a.label == by_ind[q.ind, q.ctx]["label"]
    assert len({a.pred_norm for a in answers}) == 4, "the scorer is not stuck on one ending"


def test_scores_do_not_depend_on_batching_and_long_contexts_lose_their_start(model):
    g = torch.Generator().manual_seed(1)
    ids = lambda n: torch.randint(0, 50257, (n,), generator=g).tolist()  # noqa: E731
    requests = [Request(ids(1 + 37 * i % 90), ids(1 + 5 * i % 17)) for i in range(20)]
    requests.append(Request(ids(1500), ids(3)))
    one = log_likelihoods(model, requests, device=CPU, precision="no", batch_tokens=1)
    many = log_likelihoods(model, requests, device=CPU, precision="no", batch_tokens=3000)
    assert one == pytest.approx(many, abs=1e-3)
    long = requests[-1]
    row = torch.tensor([(long.context + long.continuation)[-1025:]])
    with torch.no_grad():
        log_p = model(row[:, :-1])[0].log_softmax(-1)
    expected = sum(float(log_p[-3 + i, long.continuation[i]]) for i in range(3))
    assert one[-1] == pytest.approx(expected, abs=1e-3)


def test_the_record_counts_and_its_standard_error_is_the_sample_one(model, shared):
    questions = hellaswag.subset(hellaswag.load(shared / "hellaswag" / "hellaswag_val.jsonl"), 40)
    record, answers = hellaswag.evaluate(
        model,
        get_tokenizer("gpt2"),
        questions,
        device=CPU,
        precision="no",
        group=Group(Ranks(), CPU),
    )
    right = [float(a.pred_norm == a.label) for a in answers]
    assert record["acc_norm"] == pytest.approx(sum(right) / 40)
    variance = torch.tensor(right, dtype=torch.float64).var(unbiased=True).item()
    assert record["acc_norm_stderr"] == pytest.approx(math.sqrt(variance / 40))
    assert record["questions"] == 40


def test_it_can_be_stopped_between_batches(model, shared):
    questions = hellaswag.load(shared / "hellaswag" / "hellaswag_val.jsonl")[:50]
    asked = iter([True, True, False])
    stopped = hellaswag.answer(
        model,
        get_tokenizer("gpt2"),
        questions,
        device=CPU,
        precision="no",
        keep_going=lambda: next(asked),
    )
    assert stopped is None


def test_evaluate_writes_results_and_a_line_an_example(model, shared, tmp_path):
    theirs = huggingface.transformers_model(dict(model.state_dict()), SHAPE)
    theirs.save_pretrained(tmp_path / "hf")
    path = shared / "hellaswag" / "hellaswag_val.jsonl"
    outpace(
        "evaluate", "hf", "--tasks", "hellaswag", "--limit", "12", "--hellaswag_path", path,
        "--output", "r.json", "--details", "d.jsonl", cwd=tmp_path,
    )  # fmt: skip
    results = json.loads((tmp_path / "r.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert len(lines) == results["hellaswag"]["questions"] == 12
    assert set(lines[0]) == {"ind", "label", "pred", "pred_norm", "log_likelihoods"}
    share = sum(x["pred_norm"] == x["label"] for x in lines) / 12
    assert results["hellaswag"]["acc_norm"] == pytest.approx(share)


def test_loading_weights_of_another_shape_is_refused(model):
    from outpace.core.errors import CheckpointError

    with pytest.raises(CheckpointError, match="is \\(50304, 64\\), not"):
        load_weights(GPT2(GPT2Shape(2, 4, 32, 1024, 50257)), dict(model.state_dict()))
