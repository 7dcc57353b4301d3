"""Real gloo processes, started by torchrun, against one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TINY, final_hash, outpace

from outpace.checkpoint import store
from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder


def flags(dataset: Path, run: Path, accumulation: int, *extra: str) -> list[str]:
    """8 sequences a step: micro-batches of 2 and the accumulation that reaches it."""
    batch = ["--gradient_accumulation_steps", str(accumulation), "--tokens_per_step", str(8 * 32)]
    return [
        "train", *TINY, *batch, "--dataset", str(dataset), "--run_dir", str(run),
        "--max_steps", "6", "--save_every_steps", "3", *extra,
    ]  # fmt: skip


def launcher(processes: int, arguments: list[str]) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, f"--nproc_per_node={processes}", "-m", "outpace", *arguments]


def torchrun(processes: int, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launcher(processes, arguments),
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in read_json_lines(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def single(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    outpace(*flags(tiny_dataset, folder / "run", 4), cwd=folder)
    return folder / "run"


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 2), (4, 1)])
def test_processes_equal_accumulation(single, tiny_dataset, tmp_path, processes, accumulation):
    done = torchrun(processes, flags(tiny_dataset, tmp_path / "run", accumulation), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(single), rel=1e-6)
    got = list(read_json_lines(tmp_path / "run" / "evals.jsonl"))
    want = list(read_json_lines(single / "evals.jsonl"))
    assert [r["loss"] for r in got] == pytest.approx([r["loss"] for r in want], rel=1e-6)
    assert done.stdout.count("finished 6 of 6") == 1, "only the first process speaks"


def test_two_processes_equal_one_to_the_bit_where_the_sums_are_the_same(tiny_dataset, tmp_path):
    """One micro-batch each: a + b is one sum, wherever it is made. With dropout, too."""
    extra = ["--dropout", "0.1", "--no_use_flash_attention", "--micro_batch_size", "4"]
    outpace(*flags(tiny_dataset, tmp_path / "one", 2, *extra), cwd=tmp_path)
    done = torchrun(2, flags(tiny_dataset, tmp_path / "two", 1, *extra), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "one")[0] == pytest.approx(losses(tmp_path / "two")[0], rel=1e-7)
    assert final_hash(tmp_path / "one") == final_hash(tmp_path / "two")


def test_a_run_goes_on_with_another_number_of_processes(single, tiny_dataset, tmp_path):
    """1 -> 2 -> 1: the same data in the same order, said to be not bit-exact."""
    run = tmp_path / "run"

    def arguments(accumulation: int, steps: int) -> list[str]:
        extra = ["--schedule", "constant", "--max_steps", str(steps)]
        return flags(tiny_dataset, run, accumulation, *extra)

    outpace(*arguments(4, 2), cwd=tmp_path)
    done = torchrun(2, arguments(2, 4), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NOT-BIT-EXACT" in done.stderr
    outpace(*arguments(4, 6), cwd=tmp_path)
    straight = tmp_path / "straight"
    outpace(*flags(tiny_dataset, straight, 4, "--schedule", "constant"), cwd=tmp_path)
    assert losses(run) == pytest.approx(losses(straight), rel=1e-5)


def test_a_signal_to_torchrun_saves_one_step_on_all_ranks(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = [*flags(tiny_dataset, run, 2), "--max_steps", "100000", "--save_every_steps", "0"]
    process = subprocess.Popen(
        launcher(2, arguments),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(losses(run)) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    status = json.loads((run / "STATUS.json").read_text())
    assert status["state"] == "stopped" and status["code"] == 75
    assert status["last_verified_checkpoint"] == f"step-{status['last_step']:08d}"


def test_a_rank_that_is_killed_is_named_and_the_same_command_goes_on(
    single, tiny_dataset, tmp_path
):
    run = tmp_path / "run"
    arguments = [*flags(tiny_dataset, run, 2), "--max_steps", "100000", "--save_every_steps", "2"]
    process = subprocess.Popen(
        launcher(2, arguments),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(losses(run)) < 5:
        time.sleep(0.05)
    main_pid = json.loads((run / "STATUS.json").read_text())["pid"]
    ranks = [p.pid for p in psutil.Process(process.pid).children() if p.pid != main_pid]
    os.kill(ranks[0], signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1, "torchrun's own code"
    status = json.loads((run / "STATUS.json").read_text())
    # torchrun may end the surviving rank before it has written; then it still says running.
    assert status["state"] in ("failed", "running") and status["code"] in (9, None), err
    checkpoint = store.latest(RunFolder(run).checkpoints)
    assert checkpoint is not None
    done = torchrun(2, [*arguments, "--max_steps", str(checkpoint.step + 2)], tmp_path)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stderr[-2000:]
