"""Optimisers by what they reach: the command on a small model, and its arithmetic."""

import json

import pytest
from conftest import TINY

from outpace.bench.optimizers import best_of, in_words, sooner
from outpace.cli import bench_optimizers
from outpace.core.errors import OutpaceError, Stopped, UsageError


def run(optimizer, lr, curve, rate=100.0):
    return {
        "optimizer": optimizer,
        "lr": lr,
        "loss": curve[-1][1],
        "tokens": curve[-1][0],
        "tokens_per_second": {"median": rate},
        "curve": curve,
    }


def test_sooner_is_where_the_curve_crosses_the_others_last_loss():
    slow = run("adamw", 1e-3, [(100, 8.0), (200, 6.0), (300, 5.0)])
    fast = run("muon", 1e-3, [(100, 6.0), (200, 4.0), (300, 3.0)], rate=80.0)
    rows = [slow, fast]
    assert sooner(rows, "muon", "adamw") == pytest.approx({"tokens": 2.0, "time": 1.6})
    assert sooner(rows, "adamw", "muon") is None
    # A worse learning rate counts for the speed alone.
    rows.append(run("muon", 1.0, [(100, 9.0), (300, 8.0)], rate=90.0))
    assert sooner(rows, "muon", "adamw") == pytest.approx({"tokens": 2.0, "time": 1.8})
    at_once = [slow, run("muon", 1e-3, [(100, 4.0), (200, 4.5)])]
    assert sooner(at_once, "muon", "adamw") == pytest.approx({"tokens": 3.0, "time": 3.0})
    assert in_words(None, "adamw") == "never reaches adamw's final loss"


def test_the_best_is_the_least_loss_of_those_that_ended():
    rows = [
        run("adamw", 1e-3, [(100, 5.0)]),
        run("adamw", 2e-3, [(100, 4.0)]),
        {"optimizer": "adamw", "lr": 1.0, "exit_code": 6},
        run("muon", 1e-3, [(100, 3.0)]),
    ]
    assert best_of(rows, "adamw") is rows[1]
    assert best_of(rows, "sgd") is None


def test_the_command_trains_each_and_goes_on_where_it_was(
    tiny_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", str(tiny_dataset), *TINY, "--max_steps", "6", "--eval_every_steps", "2"]
    flags += ["--learning_rates", "1e-3", "3e-3", "--output", "r.json"]
    assert bench_optimizers.run(flags) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [(r["optimizer"], r["lr"]) for r in result["rows"]] == [
        ("adamw", 1e-3), ("adamw", 3e-3), ("muon", 1e-3), ("muon", 3e-3),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["exit_code"] == 0
        assert [tokens for tokens, _ in row["curve"]] == [2 * 128, 4 * 128, 6 * 128]
        folder = tmp_path / f"runs/optimizers/{row['optimizer']}-{row['lr']:g}"
        assert json.loads((folder / "plan.json").read_text())["plan"]["lr"] == row["lr"]
    losses = {(r["optimizer"], r["lr"]): r["loss"] for r in result["rows"]}
    assert len(set(losses.values())) == 4
    said = capsys.readouterr()
    assert "adamw's final loss" in said.out
    assert "adamw is best at 0.003, the end of the rates tried" in said.err
    assert "with 3 evaluations a run, the tokens" in said.err and "steps 1\n" in said.err

    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
    assert len(written) == 4
    assert bench_optimizers.run(flags) == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")} == written


def test_runs_that_do_not_end_are_told(tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", str(tiny_dataset), *TINY, "--max_steps", "2", "--learning_rates", "1e-3"]
    assert bench_optimizers.run([*flags, "--optimizers", "adamw"]) == 0
    # Another model in the same folder: train refuses to go on with it.
    with pytest.raises(OutpaceError, match="no run with --optimizer adamw was completed") as none:
        bench_optimizers.run([*flags, "--optimizers", "adamw", "--n_layer", "1"])
    assert none.value.exit_code == 4, "as that of the run"
    assert "adamw at 0.001 is left out: error[" in capsys.readouterr().err


def test_a_run_that_stops_before_its_end_ends_the_command_resumably(
    tiny_dataset, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", str(tiny_dataset), *TINY, "--max_steps", "100000", "--max_hours", "1e-6"]
    with pytest.raises(Stopped, match="stopped before its end") as stopped:
        bench_optimizers.run([*flags, "--learning_rates", "1e-3"])
    assert stopped.value.exit_code == 75


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--optimizer", "muon"], "--optimizer has no effect"),
        (["--optimizers"], "--optimizers is empty"),
        (["--run_dir", "x"], "--run_dir has no effect"),
        (["--optimizers", "adanw"], "no optimizer 'adanw' (did you mean adamw?)"),
        (["--learning_rates", "1e-3", "0"], "--learning_rates 0.0 is not above 0"),
    ],
)
def test_what_cannot_be_is_refused_first(flags, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        bench_optimizers.run(["--dataset", "none", *flags])
    assert what in refused.value.what
    assert not list(tmp_path.iterdir())
