"""A run that is killed, stopped or interrupted ends with the same bits as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, final_hash, outpace

from outpace.checkpoint import store
from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder

KILL_SEED = int(os.environ.get("KILL_SEED", "20260101"))


def flags(dataset: Path, run: Path, *extra: str, steps: int = 40) -> list[str]:
    return [
        "train", *TINY, "--dataset", str(dataset), "--run_dir", str(run), "--max_steps", str(steps),
        "--save_every_steps", "3", "--eval_every_steps", "7", *extra,
    ]  # fmt: skip


def start(arguments: list[str], cwd: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "outpace", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Return when the run has logged `step`, or ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(r["step"] >= step for r in read_json_lines(run / "metrics.jsonl")):
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    outpace(
        *flags(tiny_dataset, folder / "run", "--dropout", "0.1", "--no_use_flash_attention"),
        cwd=folder,
    )
    return folder / "run"


def test_kill_9_at_random_moments_then_the_same_command_ends_in_the_same_bits(
    uninterrupted, tiny_dataset, tmp_path
):
    run = tmp_path / "run"
    command = flags(tiny_dataset, run, "--dropout", "0.1", "--no_use_flash_attention")
    rng = random.Random(KILL_SEED)
    for target in sorted(rng.sample(range(1, 40), 4)):
        process = start(command, tmp_path)
        wait_for_step(run, target, process)
        time.sleep(rng.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in store.paths(RunFolder(run).checkpoints):
            assert store.fault(path) is None, "a published checkpoint is always whole"
    outpace(*command, cwd=tmp_path)

    assert final_hash(run) == final_hash(uninterrupted)
    for file in ("metrics.jsonl", "evals.jsonl"):
        got, want = list(read_json_lines(run / file)), list(read_json_lines(uninterrupted / file))
        assert [r["step"] for r in got] == [r["step"] for r in want], "every step once"
        assert [r["loss"] for r in got] == [r["loss"] for r in want]
    assert not list(RunFolder(run).checkpoints.glob(".*")), "remains were swept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves_and_leaves_with_75_and_the_same_command_goes_on(
    uninterrupted, tiny_dataset, tmp_path, number
):
    run = tmp_path / "run"
    command = flags(tiny_dataset, run, "--dropout", "0.1", "--no_use_flash_attention")
    process = start(command, tmp_path)
    wait_for_step(run, 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    status = json.loads((run / "STATUS.json").read_text())
    assert status["state"] == "stopped" and status["code"] == 75 and status["resumable"]
    assert status["last_verified_checkpoint"] == f"step-{status['last_step']:08d}"
    assert number.name in err and "Traceback" not in err
    outpace(*command, cwd=tmp_path)
    assert final_hash(run) == final_hash(uninterrupted)


def test_the_time_limit_stops_resumable(tiny_dataset, tmp_path):
    command = flags(tiny_dataset, tmp_path / "run", "--max_hours", "1e-9")
    done = outpace(*command, cwd=tmp_path, check=False)
    assert done.returncode == 75 and "max_hours" in done.stdout


def test_evaluating_and_sampling_do_not_change_the_weights(uninterrupted, tiny_dataset, tmp_path):
    extra = ["--dropout", "0.1", "--no_use_flash_attention", "--eval_every_steps", "1"]
    extra += ["--sample_tokens", "8", "--sample_every_steps", "4"]
    outpace(*flags(tiny_dataset, tmp_path / "run", *extra), cwd=tmp_path)
    assert final_hash(tmp_path / "run") == final_hash(uninterrupted)
    assert len(list(read_json_lines(tmp_path / "run" / "samples.jsonl"))) == 9 + 2


def test_a_damaged_newest_checkpoint_costs_a_warning_and_not_the_run(
    uninterrupted, tiny_dataset, tmp_path
):
    run = tmp_path / "run"
    command = flags(tiny_dataset, run, "--dropout", "0.1", "--no_use_flash_attention")
    process = start(command, tmp_path)
    wait_for_step(run, 12, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = store.paths(RunFolder(run).checkpoints)[-1] / store.MODEL
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    done = outpace(*command, cwd=tmp_path)
    assert "CKPT-BAD" in done.stderr
    assert final_hash(run) == final_hash(uninterrupted)


def test_a_finished_run_says_so_and_more_steps_extend_it(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    outpace(*flags(tiny_dataset, run, steps=6), cwd=tmp_path)
    before = final_hash(run), len(list(read_json_lines(run / "evals.jsonl")))
    again = outpace(*flags(tiny_dataset, run, steps=6), cwd=tmp_path)
    assert "finished 6 of 6" in again.stdout
    assert (final_hash(run), len(list(read_json_lines(run / "evals.jsonl")))) == before
    more = outpace(*flags(tiny_dataset, run, steps=9), cwd=tmp_path)
    assert "length changes" in more.stderr and "finished 9 of 9" in more.stdout


def test_resume_of_fp16_restores_the_loss_scale(tiny_dataset, tmp_path):
    extra = ("--mixed_precision", "fp16")
    outpace(*flags(tiny_dataset, tmp_path / "a", *extra, steps=10), cwd=tmp_path)
    process = start(flags(tiny_dataset, tmp_path / "b", *extra, steps=10), tmp_path)
    wait_for_step(tmp_path / "b", 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    outpace(*flags(tiny_dataset, tmp_path / "b", *extra, steps=10), cwd=tmp_path)
    assert final_hash(tmp_path / "a") == final_hash(tmp_path / "b")
    scales = [
        [r["loss_scale"] for r in read_json_lines(tmp_path / name / "metrics.jsonl")]
        for name in "ab"
    ]
    assert scales[0] == scales[1] and scales[0][0] > 1


def test_a_loss_that_is_not_finite_ends_with_6_and_keeps_the_checkpoint(tiny_dataset, tmp_path):
    """A real divergence: weights poisoned in a good checkpoint's place would be refused, so the
    learning rate does it."""
    run = tmp_path / "run"
    extra = ("--lr", "100", "--warmup_steps", "0", "--grad_clip", "0", "--weight_decay", "100")
    done = outpace(*flags(tiny_dataset, run, *extra, steps=400), cwd=tmp_path, check=False)
    assert done.returncode == 6, done.stdout + done.stderr
    assert "error[NON-FINITE]" in done.stderr and "Traceback" not in done.stderr
    status = json.loads((run / "STATUS.json").read_text())
    assert status["state"] == "failed" and status["code"] == 6
    assert store.latest(RunFolder(run).checkpoints) is not None


@pytest.mark.slow
def test_a_compiled_run_on_two_threads_resumes_to_the_same_bits(tiny_dataset, tmp_path):
    """Not so without deterministic kernels: see the lab log."""
    extra = ("--compile", "on", "--mixed_precision", "bf16")
    two = {"OMP_NUM_THREADS": "2"}
    outpace(*flags(tiny_dataset, tmp_path / "a", *extra, steps=24), cwd=tmp_path, **two)
    first = flags(tiny_dataset, tmp_path / "b", *extra, "--max_hours", "1e-9", steps=24)
    process = start(flags(tiny_dataset, tmp_path / "b", *extra, steps=24), tmp_path, **two)
    wait_for_step(tmp_path / "b", 11, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert outpace(*first, cwd=tmp_path, check=False, **two).returncode == 75
    outpace(*flags(tiny_dataset, tmp_path / "b", *extra, steps=24), cwd=tmp_path, **two)
    assert final_hash(tmp_path / "a") == final_hash(tmp_path / "b")


def test_fewer_steps_than_the_run_has_done_are_refused(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    outpace(*flags(tiny_dataset, run, steps=6), cwd=tmp_path)
    before = final_hash(run)
    done = outpace(*flags(tiny_dataset, run, steps=4), cwd=tmp_path, check=False)
    assert done.returncode == 2 and "error[SHORTER]" in done.stderr
    assert final_hash(run) == before
