"""The speed that training tells: steps over the time spent in them, and what is made of it."""

import itertools
import json

import pytest
from conftest import TINY

from outpace.cli.main import main
from outpace.core.files import read_json_lines
from outpace.runtime.hardware import Machine
from outpace.train import clock as training_clock
from outpace.train.progress import Progress


def test_the_clock_counts_what_is_spent_in_steps(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(training_clock.time, "perf_counter", lambda: now)
    progress = Progress(step=40, elapsed_s=7.0)  # of a run that was resumed
    clock = training_clock.Clock(progress)
    assert clock.eta(10) is None
    now += 100.0  # the first step compiles
    progress.step += 1
    assert clock.steps_per_second() is None and clock.eta(10) is None
    assert progress.elapsed_s == 107.0
    for _ in range(4):
        now += 2.0
        progress.step += 1
        with clock.paused():
            now += 500.0  # an evaluation
    assert clock.steps_per_second() == 0.5 and clock.eta(10) == 20.0
    assert progress.elapsed_s == 115.0
    assert clock.steps_per_second() is None, "no step since"
    now += 3.0
    progress.step += 3
    assert clock.steps_per_second() == 1.0
    assert clock.eta(13) == pytest.approx(13 / (0.7 * 0.5 + 0.3 * 1.0)), "smoothed"
    now += 1.0
    clock.settle()
    assert progress.elapsed_s == 119.0


def test_each_record_has_the_tokens_and_the_speed_of_its_steps(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Machine, "peak", lambda self, precision: 1e12)
    run = tmp_path / "run"
    argv = ["train", *TINY, "--dataset", str(tiny_dataset), "--run_dir", str(run)]
    assert (
        main([*argv, "--max_steps", "8", "--log_every_steps", "3", "--eval_every_steps", "0"]) == 0
    )
    records = list(read_json_lines(run / "metrics.jsonl"))
    flops_per_token = json.loads((run / "plan.json").read_text())["plan"]["flops_per_token"]
    assert [r["step"] for r in records] == [1, 3, 6, 8]
    assert [r["tokens"] for r in records] == [128 * r["step"] for r in records]
    assert records[0]["tokens_per_second"] is records[0]["mfu"] is None
    for before, after in itertools.pairwise(records):
        spent = after["elapsed_s"] - before["elapsed_s"]
        rate = after["tokens_per_second"]
        assert rate == pytest.approx(128 * (after["step"] - before["step"]) / spent, rel=1e-6)
        assert after["mfu"] == pytest.approx(rate * flops_per_token / 1e12)
