"""The race of HellaSwag's scorers: a script's own words become answers and times, and the sums are
right."""

import json

import pytest

from outpace.bench import evaluation
from outpace.bench.evaluation import Contestant, Turn
from outpace.cli.main import main

SCRIPT = """
import tiktoken
enc = tiktoken.get_encoding("gpt2")

def iterate_examples(split):
    raise AssertionError("the race has questions of its own")

def evaluate(model_type, device):
    right = 0
    for n, example in enumerate(iterate_examples("val"), 1):
        assert enc.encode(example["ctx"])
        right += example["label"] == 0
        print(f"{n} acc_norm: {right}/{n}={right / n:.4f}")
        print("predicted: 0, actual: 0")
"""
"""With the interface of build-nanogpt's hellaswag.py, and one answer to everything."""


def test_a_scripts_counts_become_the_questions_it_had_right(tmp_path):
    (tmp_path / evaluation.SCRIPT).write_text(SCRIPT)
    score = evaluation._build_nanogpt(tmp_path, tmp_path)
    labels = [0, 1, 0, 0, 3]
    turn = score([{"ctx": "A man", "label": label} for label in labels])
    assert turn.right == [label == 0 for label in labels]
    assert 0 < turn.seconds < 60 and turn.cpu_seconds >= 0


def test_the_result_counts_differences_and_ratios():
    racers = {
        "outpace, completion": Contestant("completion", lambda rows: None),
        "peer": Contestant("completion", lambda rows: None),
    }
    racers["outpace, completion"].turns = [Turn(1, 2, [True, False]), Turn(3, 2, [True])]
    racers["peer"].turns = [Turn(4, 6, [True, True]), Turn(8, 6, [True])]
    against = evaluation._against(racers)["peer"]
    assert against["times_faster"] == 3 and against["times_less_cpu"] == 3
    assert against["questions_that_differ"] == 1
    summary = evaluation._summary(racers["peer"])
    assert summary["questions_per_second"] == pytest.approx(3 / 12)
    assert summary["acc_norm"] == 1
    assert json.dumps(against)


def test_a_folder_without_the_script_is_refused(tmp_path, capsys):
    argv = ["bench", "evaluate", "--build_nanogpt", str(tmp_path), "--no_lm_eval"]
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("error[NO-PEER]: ")
