"""HellaSwag answers, one by one and in both protocols, against lm-eval and against an independent
scorer over transformers' model."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import outpace
from judges import (
    HOW,
    SMALL_VOCABULARY,
    FoldedTokenizer,
    best,
    official_rows,
    plain_scores,
    transformers_model,
    wide_model,
)

from outpace.checkpoint.state import load_weights
from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError, DataError
from outpace.evals import task
from outpace.evals.tasks import hellaswag
from outpace.interop import huggingface
from outpace.model.gpt2 import GPT2
from outpace.tokenizer import get_tokenizer
from outpace.train.score_lines import task_line

SMALL = GPT2Shape(1, 2, 32, 1024, SMALL_VOCABULARY)
SHAPE = GPT2Shape(2, 4, 64, 1024, 50257)


def evaluate(model, tokenizer, questions, *, protocol="completion", **how):
    scored = task.evaluate(model, hellaswag.ask(questions, protocol, tokenizer), **how)
    return scored and (scored[0], [SimpleNamespace(**example) for example in scored[1]])


COMPLETION = {"process_docs": None, "doc_to_text": "{{ctx}}", "doc_to_choice": "endings"}
"""lm-eval's settings for the completion protocol, which is none of its own."""


@pytest.fixture(scope="module")
def path(shared):
    return shared / "hellaswag" / "hellaswag_val.jsonl"


@pytest.fixture(scope="module")
def thousand(path):
    """1,000 questions and their official rows."""
    return (
        task.subset(hellaswag.load(path), 1000),
        task.subset(official_rows(path), 1000),
    )


@pytest.fixture(scope="module")
def model() -> GPT2:
    return wide_model(SHAPE)


@pytest.fixture(scope="module")
def small() -> GPT2:
    return wide_model(SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where GPT-2's tokenizer files are, for transformers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    huggingface.write_tokenizer(folder, 1024)
    return folder


def test_both_protocols_render_a_question_as_their_sources_do():
    """The strings are copied from what lm-eval 0.4.13 logs and what hellaswag.py encodes."""
    row = {
        "ind": 4, "activity_label": "Removing ice from car", "label": 3, "split_type": "indomain",
        "ctx_a": "[header] How to go [title] Get ready. [step] Put on a coat.",
        "ctx_b": "then, the man",
        "ctx": "[header] How to go [title] Get ready. [step] Put on a coat. then, the man",
        "endings": [", adds wax.", "[substeps] Wait.  Look [ok] up.", "é [title] x", "goes out."],
        "source_id": "wikihow~4",
    }  # fmt: skip
    q = hellaswag._question(row)
    raw, clean = (hellaswag.render(q, protocol) for protocol in hellaswag.PROTOCOLS)
    assert raw.contexts == [row["ctx"]]
    assert raw.continuations == [f" {e}" for e in row["endings"]]
    assert clean.contexts == [
        "Removing ice from car: How to go. Get ready. Put on a coat. Then, the man"
    ]
    assert clean.choices == [", adds wax.", " Wait. Look up.", "é. x", "goes out."]
    assert clean.continuations == [f" {e}" for e in clean.choices]
    assert raw.groups == {"source": "wikihow", "split_type": "indomain"}


@pytest.mark.parametrize("protocol", hellaswag.PROTOCOLS)
def test_1000_predictions_equal_lm_eval_and_an_independent_scorer(
    protocol, thousand, small, folder, tmp_path
):
    judge = pytest.importorskip("outpace.bench.lm_eval_judge")
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    questions, rows = thousand
    tokenizer, theirs = FoldedTokenizer(), transformers_model(small)
    record, answers = evaluate(small, tokenizer, questions, protocol=protocol, **HOW)

    lm = judge.model(theirs, folder, batch_size=64, encode=tokenizer.encode)
    changed = COMPLETION if protocol == "completion" else {}
    local = judge.local_task("hellaswag", rows, tmp_path, **changed)
    samples = judge.samples(lm, local)
    assert len(answers) == len(samples) == 1000
    for q, a, sample in zip(questions, answers, samples, strict=True):
        item = hellaswag.render(q, protocol)
        sums = plain_scores(theirs, tokenizer.encode, item.contexts[0], item.continuations)
        if protocol == "completion":
            lengths = [len(tokenizer.encode(text)) for text in item.continuations]
        else:
            lengths = [len(text) for text in sample["doc"]["choices"]]
        for truth in (sums, judge.log_likelihoods(sample)):
            assert a.log_likelihoods == pytest.approx(truth, rel=1e-5)
            assert a.pred == best(truth)
            assert a.pred_norm == best([s / n for s, n in zip(truth, lengths, strict=True)])
        assert sample["acc"] == float(a.pred == a.label)
        if protocol == "harness":
            assert sample["acc_norm"] == float(a.pred_norm == a.label)
            assert sample["acc_bytes"] == float(a.pred_bytes == a.label)
    assert len({a.pred_norm for a in answers}) == 4, "the scorer is not stuck on one ending"
    assert record["acc"] == pytest.approx(sum(s["acc"] for s in samples) / 1000)


@pytest.mark.exhaustive
@pytest.mark.timeout(5400)  # lm-eval takes some quarter of an hour on two cores
@pytest.mark.parametrize("protocol", hellaswag.PROTOCOLS)
def test_1000_predictions_of_the_124m_model_equal_lm_eval(protocol, thousand, folder, tmp_path):
    judge = pytest.importorskip("outpace.bench.lm_eval_judge")
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    questions, rows = thousand
    model = wide_model(GPT2Shape(12, 12, 768, 1024, 50257), factor=3.0)
    tokenizer = get_tokenizer("gpt2")
    _, answers = evaluate(model, tokenizer, questions, protocol=protocol, **HOW)
    changed = COMPLETION if protocol == "completion" else {}
    local = judge.local_task("hellaswag", rows, tmp_path, **changed)
    samples = judge.samples(judge.model(transformers_model(model), folder, batch_size=8), local)
    for a, sample in zip(answers, samples, strict=True):
        truth = judge.log_likelihoods(sample)
        assert a.log_likelihoods == pytest.approx(truth, rel=1e-4)
        assert a.pred == best(truth)
        assert protocol == "completion" or sample["acc_norm"] == float(a.pred_norm == a.label)


def test_with_the_whole_vocabulary_predictions_equal_the_independent_scorer(model, path):
    tokenizer, theirs = get_tokenizer("gpt2"), transformers_model(model)
    questions = task.subset(hellaswag.load(path), 6)
    _, answers = evaluate(model, tokenizer, questions, **HOW)
    for q, a in zip(questions, answers, strict=True):
        sums = plain_scores(theirs, tokenizer.encode, q.ctx, [f" {e}" for e in q.endings])
        means = [s / len(tokenizer.encode(f" {e}")) for s, e in zip(sums, q.endings, strict=True)]
        assert a.log_likelihoods == pytest.approx(sums, abs=1e-3)
        assert (a.pred, a.pred_norm) == (best(sums), best(means))


def test_the_record_counts_and_its_standard_error_is_the_sample_one(small, path):
    questions = task.subset(hellaswag.load(path), 40)
    record, answers = evaluate(small, FoldedTokenizer(), questions, **HOW)
    right = [float(a.pred_norm == a.label) for a in answers]
    assert record["acc_norm"] == pytest.approx(sum(right) / 40)
    variance = torch.tensor(right, dtype=torch.float64).var(unbiased=True).item()
    assert record["acc_norm_stderr"] == pytest.approx(math.sqrt(variance / 40))
    assert record["questions"] == 40
    for kind in ("source", "split_type"):
        parts = record["by"][kind]
        assert sum(p["questions"] for p in parts.values()) == 40
        mean = sum(p["questions"] * p["acc_norm"] for p in parts.values()) / 40
        assert mean == pytest.approx(record["acc_norm"])


def test_the_whole_split_costs_at_most_2_1_million_tokens(path):
    from outpace.evals.packing import pack, trees

    questions = task.subset(hellaswag.load(path), 2_000)
    asked = hellaswag.ask(questions, "completion", get_tokenizer("gpt2"))
    batches = pack(trees(asked.requests, 1024), 32_768)
    assert sum(b.tokens for b in batches) / 2_000 <= 2_100_000 / 10_042
    assert len({(b.width, len(b.rows)) for b in batches}) == 1, "shapes a compiler sees"


def test_it_can_be_stopped_between_batches(small, path):
    questions = hellaswag.load(path)[:200]
    told = []

    def twice(done: float) -> bool:
        told.append(done)
        return len(told) < 3

    stopped = evaluate(small, FoldedTokenizer(), questions, keep_going=twice, **HOW)
    assert stopped is None
    assert told[0] == 0 and told == sorted(told) and 0 < told[-1] < 1


def test_evaluate_writes_results_and_a_line_an_example(model, path, tmp_path):
    transformers_model(model).save_pretrained(tmp_path / "hf")
    out = outpace(
        "evaluate", "hf", "--tasks", "hellaswag", "--limit", "4", "--hellaswag_path", path,
        "--protocol", "both", "--subset", "wikihow,zeroshot",
        "--output", "r.json", "--details", "d.jsonl", cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "4 questions of wikihow,zeroshot): acc_norm" in out
    assert "GPT-2" not in out, "its published scores are those of all questions"
    records = json.loads((tmp_path / "r.json").read_text())["results"]
    assert {record.pop("subset") for record in records} == {"wikihow,zeroshot"}
    for record, published in zip(records, ("0.2955", "0.3114"), strict=True):
        assert f"GPT-2 124M: acc_norm {published}" in task_line(record)
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    for record, protocol in zip(records, hellaswag.PROTOCOLS, strict=True):
        mine = [x for x in lines if x["protocol"] == protocol]
        assert len(mine) == record["questions"] == 4 and record["protocol"] == protocol
        share = sum(x["pred_norm"] == x["label"] for x in mine) / 4
        assert record["acc_norm"] == pytest.approx(share)
        assert all(x["source_id"].startswith("wikihow~") for x in mine)
        assert {x["split_type"] for x in mine} == {"zeroshot"}
    fields = {"task", "protocol", "ind", "source_id", "split_type", "label", "pred", "pred_norm"}
    assert set(lines[0]) == fields | {"log_likelihoods"}
    assert set(lines[-1]) == set(lines[0]) | {"pred_bytes"}
    assert len(lines[0]["log_likelihoods"]) == 4


@pytest.mark.parametrize("change", ["label", "activity_label", "ctx_b", "short", "split_type"])
def test_a_file_that_is_mislabelled_short_or_changed_is_refused(change, path, tmp_path):
    lines = path.read_text().split("\n")
    row = json.loads(lines[17])
    if change == "label":
        row["label"] = (row["label"] + 1) % 4
    elif change != "short":
        row[change] += " x"
    lines[17] = json.dumps(row) if change != "short" else ""
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(lines))
    with pytest.raises(DataError, match="is not the") as caught:
        hellaswag.load(bad)
    assert caught.value.exit_code == 3


def test_a_file_without_labels_of_activities_serves_the_completion_protocol_only(path, tmp_path):
    keep = ("ind", "ctx", "endings", "label")
    bare = tmp_path / "bare.jsonl"
    rows = [{k: row[k] for k in keep} for row in official_rows(path)]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    question = hellaswag.load(bare)[0]
    assert hellaswag.render(question, "completion").contexts
    with pytest.raises(DataError, match="activity_label"):
        hellaswag.render(question, "harness")


def test_loading_weights_of_another_shape_is_refused(model):
    with pytest.raises(CheckpointError, match="is \\(50304, 64\\), not"):
        load_weights(GPT2(GPT2Shape(2, 4, 32, 1024, 50257)), dict(model.state_dict()))
