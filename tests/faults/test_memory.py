"""Memory that runs out: the same batch in smaller pieces, on all processes, to the same gradient;
evaluations, samples and copies that give way; and no leak."""

import json
import signal
import statistics
from pathlib import Path

import poison
import pytest
from conftest import TINY
from harness import (
    assert_nothing_lost,
    assert_steps_stand_once,
    call,
    events,
    logged,
    start,
    status,
)
from peers import call_ranks
from trials_resume import hashes, newest, rows_by_step

from outpace.checkpoint import store
from outpace.cli.main import main
from outpace.core.files import read_json_lines

STEPS = 12
ROW = 32
"""Tokens of a sequence."""


def command(dataset: Path, run: Path, rows: int, accumulation: int, *extra: str) -> list[str]:
    return [
        "train", *TINY, "--dataset", str(dataset), "--run_dir", str(run),
        "--max_steps", str(STEPS), "--micro_batch_size", str(rows),
        "--gradient_accumulation_steps", str(accumulation), "--save_every_steps", "1",
        "--keep_checkpoints", "1000", "--eval_every_steps", "4",
        "--dropout", "0.1", "--no_use_flash_attention", *extra,
    ]  # fmt: skip


def losses(run: Path, file: str = "metrics.jsonl") -> list[float]:
    return [r["loss"] for r in read_json_lines(run / file)]


@pytest.fixture(scope="module")
def planned(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 4 micro-batches of 2 rows from the start, and the rows it was given."""
    folder = tmp_path_factory.mktemp("planned")
    child = call(
        *command(tiny_dataset, folder / "run", 2, 4),
        cwd=folder,
        setup=poison.record_rows,
        args=(str(folder / "rows"),),
    )
    assert child.code == 0, child.err
    return folder / "run"


@pytest.mark.parametrize("rows", [4, 8])
@pytest.mark.parametrize("host", [False, True], ids=["gpu", "cpu"])
def test_m1_a_micro_batch_that_does_not_fit_is_cut(planned, tiny_dataset, tmp_path, rows, host):
    """More than two rows never fit: as if two had been planned, to the bit, dropout and all; each
    row of each step is read once."""
    run, given = tmp_path / "run", tmp_path / "rows"
    child = call(
        *command(tiny_dataset, run, rows, 8 // rows),
        cwd=tmp_path,
        setup=poison.all_of,
        args=((poison.record_rows, str(given)), (poison.memory, 2 * ROW, True, 0, None, host)),
    )
    assert child.code == 0, child.err
    assert "[MEMORY]" in child.err and "continuing with 2" in child.err
    assert hashes(run) == hashes(planned)
    assert rows_by_step(given) == rows_by_step(planned.parent / "rows")
    assert losses(run) == losses(planned)
    assert [e["micro_batch_size"] for e in events(run, "memory")] == {4: [2], 8: [4, 2]}[rows]


def test_m1_later_in_the_run_the_same_batch_is_done_again(planned, tiny_dataset, tmp_path):
    """In the second micro-step of step 6: nothing of its first is left over. A resume knows."""
    run, given = tmp_path / "run", tmp_path / "rows"
    arguments = command(tiny_dataset, run, 4, 2, "--dropout", "0", "--eval_every_steps", "0")
    fault = (poison.memory, 2 * ROW, True, 11)
    record = (poison.record_rows, str(given))
    slow = (poison.slow_steps, 0.05)
    child = start(*arguments, cwd=tmp_path, setup=poison.all_of, args=(record, fault, slow))
    child.until(lambda: newest(run) >= 8)
    child.kill()
    assert [e["step"] for e in events(run, "memory")] == [6]
    child = call(
        *arguments, cwd=tmp_path, setup=poison.all_of, args=(record, (poison.memory, 2 * ROW))
    )
    assert child.code == 0 and "[MEMORY]" not in child.err, "it stands in the checkpoint"
    assert rows_by_step(given) == rows_by_step(planned.parent / "rows")
    whole = tmp_path / "whole"
    call(*command(tiny_dataset, whole, 4, 2, "--dropout", "0"), cwd=tmp_path)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-6)
    norms = [[r["grad_norm"] for r in read_json_lines(r / "metrics.jsonl")] for r in (run, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert_steps_stand_once(run)
    assert_nothing_lost(run)


@pytest.mark.parametrize("after", [0, 10], ids=["from-the-start", "in-step-5"])
def test_m1_one_process_short_of_memory_cuts_for_both(tiny_dataset, tmp_path, after):
    """Rank 1 alone runs out, in a micro-step in which nobody waits for the other."""
    run, other = tmp_path / "run", tmp_path / "planned"
    small = call_ranks(2, *command(tiny_dataset, other, 2, 2), cwd=tmp_path)
    assert [r.code for r in small] == [0, 0], small[0].err
    ranks = call_ranks(
        2,
        *command(tiny_dataset, run, 4, 1) if after == 0 else command(tiny_dataset, run, 4, 2),
        cwd=tmp_path,
        setup=poison.memory,
        args=(2 * ROW, True, after, 1),
    )
    assert [r.code for r in ranks] == [0, 0], ranks[0].err + ranks[1].err
    assert ranks[0].err.count("[MEMORY]") == 1
    assert [e["step"] for e in events(run, "memory")] == [1 if after == 0 else 5]
    assert logged(run) == STEPS
    if after == 0:
        assert hashes(run) == hashes(other)
    assert_nothing_lost(run)


def test_m1_a_resume_goes_on_with_as_many_rows_as_fitted(planned, tiny_dataset, tmp_path):
    """However large a micro-batch it asks for; a step that was halved in between proves nothing."""
    run = tmp_path / "run"
    stop = ((poison.memory, 2 * ROW), (poison.signalled, 6, signal.SIGTERM))
    child = call(
        *command(tiny_dataset, run, 8, 1), cwd=tmp_path, setup=poison.all_of, args=stop
    )  # fmt: skip
    assert child.code == 75 and "continuing with 2" in child.err, child.err
    for at, rows, accumulation in ((7, 4, 2), (9, 8, 1), (STEPS, 2, 4)):
        arguments = [*command(tiny_dataset, run, rows, accumulation), "--max_steps", str(at)]
        child = call(*arguments, cwd=tmp_path)
        assert child.code == 0, child.err
        assert ("continuing with 2 sequences per micro-step" in child.err) == (rows > 2)
        state = json.loads((store.paths(run / "checkpoints")[-1] / store.STATE).read_text())
        assert state["progress"]["pieces"] == rows // 2


def test_m1_a_resume_of_uneven_parts_is_exact(tiny_dataset, tmp_path):
    """Six rows in four parts are three of two; the number seeds dropout."""
    short = (poison.memory, 2 * ROW)
    runs = [tmp_path / name for name in ("straight", "stopped")]
    straight, stopped = ([*command(tiny_dataset, run, 6, 2), "--strict_resume"] for run in runs)
    options = {"cwd": tmp_path, "setup": poison.all_of}
    assert call(*straight, **options, args=(short,)).code == 0
    stop = (poison.signalled, 6, signal.SIGTERM)
    assert call(*stopped, **options, args=(short, stop)).code == 75
    assert call(*stopped, **options, args=(short,)).code == 0
    assert hashes(runs[1]) == hashes(runs[0])


def test_m1_a_step_that_was_halved_is_no_proof(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = [*command(tiny_dataset, run, 4, 2), "--save_every_steps", "3"]
    fault = {"setup": poison.memory, "args": (2 * ROW, True, 8)}
    assert call(*arguments, cwd=tmp_path, **fault).code == 0
    assert [e["step"] for e in events(run, "memory")] == [5]
    refused = call("prove-resume", str(run), "--at", "3", cwd=tmp_path)
    assert refused.code == 2 and "memory ran short between step 3 and 6" in refused.err
    assert call("prove-resume", str(run), "--at", "6", cwd=tmp_path).code == 0


@pytest.mark.parametrize("host", [False, True], ids=["gpu", "cpu"])
def test_m2_one_row_that_does_not_fit_is_exit_7(planned, tiny_dataset, tmp_path, host):
    """From step 6 on: what was saved is whole, the line says what to change, and with memory the
    same command goes on."""
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, 2, 4)
    fault = (0, True, 20, None, host)
    child = call(*arguments, cwd=tmp_path, setup=poison.memory, args=fault)
    assert child.code == 7, child.err
    last = child.err.strip().splitlines()[-1]
    assert last.startswith("error[MEMORY]: ") and "--context" in last and "kept: " in last
    assert "Traceback" not in child.err
    assert newest(run) == 5 and status(run)["code"] == 7 and status(run)["resumable"]
    assert_nothing_lost(run)
    assert call(*arguments, cwd=tmp_path).code == 0
    assert hashes(run) == hashes(planned)


def test_m3_an_evaluation_is_done_in_smaller_batches(planned, tiny_dataset, tmp_path):
    """No more than two rows at once: the same losses, and not a word."""
    run = tmp_path / "run"
    child = call(
        *command(tiny_dataset, run, 2, 4), cwd=tmp_path, setup=poison.memory, args=(2 * ROW, False)
    )
    assert child.code == 0 and "EVAL-MEMORY" not in child.err, child.err
    assert hashes(run) == hashes(planned)
    assert losses(run, "evals.jsonl") == pytest.approx(losses(planned, "evals.jsonl"), rel=1e-6)


def test_m3_an_evaluation_that_does_not_fit_at_all_is_left_out(tiny_dataset, tmp_path):
    """Windows of 128 tokens where 64 fit, which is what a checkpoint's probe takes: recorded as
    failed, warned of, and the training is what it is without; with memory it is made up for."""
    long = ("--context", "128", "--save_every_steps", "4", "--sample_tokens", "4")
    run, other = tmp_path / "run", tmp_path / "other"
    arguments = command(tiny_dataset, run, 2, 4, *long)
    child = call(*arguments, cwd=tmp_path, setup=poison.memory, args=(64, False))
    assert child.code == 0 and "Traceback" not in child.err, child.err
    assert child.err.count("[EVAL-MEMORY] validation") == 3
    failed = [(r["step"], r["task"], r["failed"]) for r in read_json_lines(run / "evals.jsonl")]
    assert failed == [(step, "validation", "out of memory") for step in (4, 8, 12)]
    again = call(*arguments, cwd=tmp_path)
    assert again.code == 0 and read_last(run / "evals.jsonl")["loss"] > 0
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert call(*command(tiny_dataset, other, 2, 4, *long), cwd=tmp_path).code == 0
    assert hashes(run) == hashes(other)


def read_last(path: Path) -> dict[str, float]:
    return list(read_json_lines(path))[-1]


def test_m3_samples_that_do_not_fit_are_left_out(planned, tiny_dataset, tmp_path):
    """A prompt of 24 tokens, of which not even 16 fit; the 15 passes before it, twelve probes and
    three validations, still did."""
    run = tmp_path / "run"
    prompt = ("--sample_prompt", "A prompt of a few words ", "--sample_tokens", "4")
    extra = (*prompt, "--val_tokens", "32")
    arguments = command(tiny_dataset, run, 2, 4, *extra)
    child = call(*arguments, cwd=tmp_path, setup=poison.memory, args=(16, False, 15))
    assert child.code == 0 and "[EVAL-MEMORY] sample" in child.err, child.err
    assert not (run / "samples.jsonl").exists()
    assert hashes(run) == hashes(planned)
    assert call(*arguments, cwd=tmp_path).code == 0
    assert len(list(read_json_lines(run / "samples.jsonl"))) == 2


@pytest.mark.parametrize("tokens", [2 * ROW, 64], ids=["smaller", "not-at-all"])
def test_m3_an_evaluation_short_of_memory_on_one_process(tiny_dataset, tmp_path, tokens):
    """Rank 1 alone: it scores in smaller batches, or both leave the evaluation out; neither waits
    for the other in vain."""
    run = tmp_path / "run"
    context = ("--context", "128", "--tokens_per_step", "1024") if tokens == 64 else ()
    ranks = call_ranks(
        2,
        *command(tiny_dataset, run, 2, 2, *context),
        cwd=tmp_path,
        setup=poison.memory,
        args=(tokens, False, 0, 1),
    )
    assert [r.code for r in ranks] == [0, 0], ranks[0].err + ranks[1].err
    found = list(read_json_lines(run / "evals.jsonl"))
    assert [r["step"] for r in found] == [4, 8, 12]
    assert ["failed" in r for r in found] == [tokens == 64] * 3
    assert logged(run) == STEPS


def test_m3_without_memory_for_a_copy_saves_are_made_in_front(planned, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, 2, 4)
    child = call(*arguments, cwd=tmp_path, setup=poison.no_memory_for_a_copy)
    assert child.code == 0 and child.err.count("[SAVE-IN-FRONT]") == 1, child.err
    assert hashes(run) == hashes(planned)
    assert_nothing_lost(run)


def test_m4_a_limit_of_address_space(tiny_dataset, tmp_path):
    """RLIMIT_AS a little above what is taken: PyTorch's RuntimeError is recognised, the micro-batch
    cut to one row, and when that does not fit it is exit 7 in one line."""
    run = tmp_path / "run"
    large = (
        "--context",
        "1024",
        "--n_embd",
        "256",
        "--tokens_per_step",
        "8192",
        "--no_space_check",
    )
    child = call(
        *command(tiny_dataset, run, 8, 1, *large),
        cwd=tmp_path,
        setup=poison.address_space,
        args=(48 << 20,),
    )
    assert child.code == 7, child.out + child.err
    assert child.err.strip().splitlines()[-1].startswith("error[MEMORY]: ")
    assert "[MEMORY] a micro-batch of 8" in child.err and "Traceback" not in child.err
    assert status(run)["code"] == 7


def test_m5_a_kill_for_want_of_memory_is_told_by_status(planned, tiny_dataset, tmp_path, capsys):
    """The system kills with SIGKILL, and nobody can say anything then."""
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, 2, 4)
    child = start(*arguments, cwd=tmp_path, setup=poison.slow_steps, args=(0.03,))
    child.until(lambda: newest(run) >= 3)
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert_nothing_lost(run)
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert "interrupted" in said and "the system ran out of memory" in said, said
    assert call(*arguments, cwd=tmp_path).code == 0
    assert hashes(run) == hashes(planned)


@pytest.mark.exhaustive
def test_m6_memory_does_not_grow(tiny_dataset, tmp_path):
    """500 steps with 50 saves, evaluations and samples: less than 1 MB in 100 steps, after the
    first 100. Theil and Sen's slope: the median over pairs."""
    run = tmp_path / "run"
    extra = [
        "--max_steps", "500", "--save_every_steps", "10", "--keep_checkpoints", "2",
        "--eval_every_steps", "20", "--sample_every_steps", "50", "--sample_tokens", "8",
    ]  # fmt: skip
    child = call(*command(tiny_dataset, run, 2, 4, *extra), cwd=tmp_path, timeout=600)
    assert child.code == 0, child.err
    taken = [
        (r["step"], r["memory_gib"] * 2**30 / 1e6)
        for r in read_json_lines(run / "metrics.jsonl")
        if r["step"] > 100 and r["step"] % 5 == 0
    ]
    slopes = [(y2 - y1) / (x2 - x1) for x1, y1 in taken for x2, y2 in taken if x2 > x1]
    assert 100 * statistics.median(slopes) < 1
