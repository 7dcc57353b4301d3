"""Evaluation in the training loop: at its own intervals, in a bounded time, without a trace in the
weights."""

import json
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, final_hash, write_corpus

from outpace.cli.main import main
from outpace.core.files import read_json_lines
from outpace.model.gpt2 import GPT2
from outpace.train import evaluate

QUIET = ("--eval_every_steps", "0", "--hellaswag_limit", "0", "--sample_tokens", "0")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A dataset of GPT-2's tokens."""
    from outpace.data.prepare import PrepareOptions, prepare
    from outpace.data.sources.files import FilesSource

    folder = tmp_path_factory.mktemp("words")
    source = FilesSource([str(write_corpus(folder / "text"))])
    prepare(source, folder / "data", PrepareOptions(tokenizer="gpt2", val_fraction=0.1))
    return folder / "data"


def train(words: Path, run: Path, steps: int, *flags: str) -> Path:
    argv = [
        "train",
        *TINY,
        "--dataset",
        str(words),
        "--run_dir",
        str(run),
        "--max_steps",
        str(steps),
    ]
    assert main([*argv, *flags]) == 0
    return run


def records(run: Path, task: str) -> list[dict]:
    return [r for r in read_json_lines(run / "evals.jsonl") if r["task"] == task]


def test_evaluating_everything_at_every_step_leaves_the_weights_alone(
    words, shared, tmp_path, capsys, monkeypatch
):
    """At intervals that were asked for, which are kept whatever their share of the time."""
    monkeypatch.setattr(evaluate, "ALWAYS_S", 0.0)
    quiet = train(words, tmp_path / "quiet", 4, *QUIET)
    capsys.readouterr()
    busy = train(
        words, tmp_path / "busy", 4, "--eval_every_steps", "1", "--hellaswag_every_steps", "2",
        "--hellaswag_limit", "3", "--hellaswag_protocol", "both", "--sample_every_steps", "3",
        "--sample_tokens", "4", "--eval_time_share", "0",
        "--hellaswag_path", str(shared / "hellaswag" / "hellaswag_val.jsonl"),
    )  # fmt: skip
    assert final_hash(busy) == final_hash(quiet)
    assert [r["step"] for r in records(busy, "validation")] == [1, 2, 3, 4]
    scored = [(r["step"], r["protocol"]) for r in records(busy, "hellaswag")]
    assert scored == [(s, p) for s in (2, 4) for p in ("completion", "harness")]
    assert {r["step"] for r in read_json_lines(busy / "samples.jsonl")} == {3, 4}
    out = capsys.readouterr().out
    assert "GPT-2 124M: acc_norm 0.2955" in out and "acc_norm 0.3114" in out
    assert "evaluation took " in out


def test_answers_and_samples_that_are_not_finite_are_left_out_and_training_goes_on(
    words, shared, tmp_path, monkeypatch, capsys
):
    """The loss of a step has a kernel of its own, so what is scored can be bad by itself."""
    quiet = train(words, tmp_path / "quiet", 2, *QUIET)
    monkeypatch.setattr(GPT2, "logits", lambda self, h: h.new_full((len(h), 50304), torch.nan))
    run = train(
        words, tmp_path / "run", 2, "--hellaswag_limit", "3", "--hellaswag_every_steps", "1",
        "--sample_every_steps", "1", "--sample_tokens", "4",
        "--hellaswag_path", str(shared / "hellaswag" / "hellaswag_val.jsonl"),
    )  # fmt: skip
    said = capsys.readouterr().err
    assert final_hash(run) == final_hash(quiet)
    for task in ("hellaswag", "sample"):
        assert [(r["step"], r["failed"]) for r in records(run, task)] == [
            (step, "not finite") for step in (1, 2)
        ]
        assert f"[NOT-FINITE] {task} at step 2 is not finite and left out; training goes on" in said
    assert not (run / "samples.jsonl").exists()


def test_intervals_left_to_auto_are_held_to_their_share(
    tiny_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "ALWAYS_S", 0.0)
    flags = ("--eval_time_share", "0", "--hellaswag_limit", "0")
    run = train(tiny_dataset, tmp_path / "run", 40, *flags)
    steps = [r["step"] for r in records(run, "validation")]
    assert steps == [2, 40], "the first, whose cost was unknown, and the last"
    out = capsys.readouterr().out
    assert out.count("not evaluated, to keep evaluations within 0% of the training time") == 1


def test_questions_that_are_broken_for_one_protocol_do_not_stop_training(
    words, shared, tmp_path, capsys
):
    rows = (shared / "hellaswag" / "hellaswag_val.jsonl").read_text().split("\n")
    keep = ("ind", "ctx", "endings", "label")
    bare = tmp_path / "bare.jsonl"
    parsed = (json.loads(row) for row in rows if row)
    bare.write_text("".join(json.dumps({k: r[k] for k in keep}) + "\n" for r in parsed))
    flags = ("--hellaswag_limit", "2", "--hellaswag_protocol", "harness")
    run = train(words, tmp_path / "run", 2, *flags, "--hellaswag_path", str(bare))
    assert [r["failed"] for r in records(run, "hellaswag")]
    assert "training goes on" in capsys.readouterr().err


def test_the_time_of_an_evaluation_is_that_of_its_step_however_seldom_steps_are_logged(
    tiny_dataset, tmp_path
):
    flags = ("--log_every_steps", "100", "--eval_every_steps", "10", "--hellaswag_limit", "0")
    run = train(tiny_dataset, tmp_path / "run", 30, *flags)
    at = [r["elapsed_s"] for r in records(run, "validation")]
    assert len(at) == 3 and 0 < at[0] < at[1] < at[2]


def test_what_comes_before_the_first_step_is_no_training(tiny_dataset, tmp_path, monkeypatch):
    """Encoding questions, say, or an evaluation that was missed."""
    late, real = [0.0], time.perf_counter

    def missed(self: object) -> None:
        late[0] += 1e6

    monkeypatch.setattr(time, "perf_counter", lambda: real() + late[0])
    monkeypatch.setattr(evaluate.Evaluation, "run_missed", missed)
    run = train(tiny_dataset, tmp_path / "run", 2, *QUIET)
    assert all(r["elapsed_s"] < 1e6 for r in read_json_lines(run / "metrics.jsonl"))


def test_questions_that_were_asked_for_and_are_not_there_are_refused_before_training(
    words, tmp_path, capsys
):
    argv = ["train", *TINY, "--dataset", str(words), "--run_dir", str(tmp_path / "run")]
    argv += ["--max_steps", "2", "--hellaswag_path", str(tmp_path / "nowhere.jsonl")]
    assert main(argv) == 0, "TINY leaves HellaSwag out"
    assert main([*argv, "--hellaswag_limit", "5", "--run_dir", str(tmp_path / "b")]) == 3
    assert "error[HELLASWAG]: --hellaswag_path was given" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_to_leave_scores_on_the_way_out_does_not_ask_for_questions(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where none are prepared
    flags = [flag for flag in TINY if flag != "--hellaswag_limit"]
    del flags[flags.index("--sample_tokens") - 1]  # its value
    argv = ["train", *flags, "--dataset", str(words), "--max_steps", "2"]
    assert main([*argv, "--hellaswag_every_steps", "1"]) == 3
    assert main([*argv, "--hellaswag_every_steps", "0"]) == 0
    assert "HellaSwag is not scored" in capsys.readouterr().err
