"""The examples for schedulers, as they are, on this machine: a stand-in for `srun` starts the tasks
that SLURM would, and passes the signal on that SLURM would send."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, outpace
from harness import assert_nothing_lost, assert_steps_stand_once, logged, status

SRUN = """#!{python}
import os, signal, subprocess, sys
command = [a for a in sys.argv[1:] if not a.startswith("--kill-on-bad-exit")]
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [t.send_signal(signal.SIGUSR1) for t in tasks])
for rank in range(int(os.environ["SLURM_NTASKS"])):
    env = os.environ | dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
    tasks.append(subprocess.Popen(command, env=env))
open("srun.pid", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$1" in
    show) echo 127.0.0.1 ;;
    requeue) echo "$2" >> requeued ;;
esac
"""
STEPS = ["--max_steps", "100000", "--save_every_steps", "0"]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder like a checkout, with commands like a cluster's."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "srun").write_text(SRUN.format(python=sys.executable))
    (commands / "scontrol").write_text(SCONTROL)
    for command in commands.iterdir():
        command.chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    return tmp_path


def submit(cluster: Path, *flags: str) -> subprocess.Popen[str]:
    """What sbatch does."""
    (cluster / "srun.pid").unlink(missing_ok=True)
    job = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "PATH": f"{cluster / 'commands'}:{os.environ['PATH']}",
    }  # fmt: skip
    script = ROOT / "examples" / "slurm.sbatch"
    return subprocess.Popen(
        ["bash", str(script), *TINY, *flags],
        cwd=cluster,
        env=os.environ | job,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and logged(run) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.exhaustive
def test_s11_the_slurm_example_saves_requeues_and_goes_on(cluster, tiny_dataset):
    run = cluster / "run"
    same = ["--dataset", str(tiny_dataset), "--run_dir", str(run), "--schedule", "constant"]
    same += ["--tokens_per_step", "auto"]  # that of the recipe is for eight GPUs
    job = submit(cluster, *same, *STEPS)
    wait_for_step(run, 3, job)
    os.kill(int((cluster / "srun.pid").read_text()), signal.SIGUSR1)
    out, _ = job.communicate(timeout=90)
    assert job.returncode == 75, out
    assert "SIGUSR1 received" in out
    assert (cluster / "requeued").read_text().split() == [str(os.getpid())]
    assert status(run)["state"] == "stopped"
    stopped_at = status(run)["last_step"]
    assert_nothing_lost(run)

    again = submit(cluster, *same, "--max_steps", str(stopped_at + 2))
    out, _ = again.communicate(timeout=90)
    assert again.returncode == 0, out
    assert f"at step {stopped_at:,}" in out
    assert len((cluster / "requeued").read_text().split()) == 1, "a finished job is not queued"
    assert_steps_stand_once(run)


@pytest.mark.exhaustive
def test_k12_the_torchrun_example_starts_again_after_a_lost_process(cluster, tiny_dataset):
    run = cluster / "run"
    flags = ["--dataset", str(tiny_dataset), "--max_steps", "300", "--save_every_steps", "20"]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PROCESSES": "2"}
    loop = subprocess.Popen(
        ["bash", str(ROOT / "examples" / "torchrun.sh"), str(run), *TINY, *flags],
        cwd=cluster,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_step(run, 30, loop)
    os.kill(status(run)["pid"], signal.SIGKILL)
    out, _ = loop.communicate(timeout=300)
    assert loop.returncode == 0, out
    assert "resuming from" in out
    assert_steps_stand_once(run)
    whole = [*TINY, *flags, "--gradient_accumulation_steps", "4"]
    outpace("train", *whole, "--run_dir", str(cluster / "straight"), cwd=cluster)
    assert status(run)["last_step"] == status(cluster / "straight")["last_step"] == 300
