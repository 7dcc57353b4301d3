"""A checkpoint's commit protocol under kills, power loss, failing writers and lost processes."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import poison
import psutil
import pytest
import torch
import trials
from conftest import ROOT
from harness import (
    Child,
    Fault,
    assert_nothing_lost,
    assert_steps_stand_once,
    assert_tidy,
    call,
    events,
    logged,
    start,
    status,
)
from peers import call_ranks, start_ranks
from safetensors.torch import load_file
from trials import command, mounted, stopped_by

from outpace.checkpoint import store
from outpace.checkpoint.saver import Saver
from outpace.core.runfolder import RunFolder
from outpace.data.loader import Loader
from outpace.train import loop

KILL_SEED = int(os.environ.get("KILL_SEED", "20260101"))


@pytest.mark.parametrize("kills", [12, pytest.param(60, marks=pytest.mark.exhaustive)])
def test_k1_random_kills_lose_nothing_and_end_in_the_same_bits(tiny_dataset, tmp_path, kills):
    rng = random.Random(KILL_SEED)
    outcomes = [trials.kill_trial(rng, tmp_path, tiny_dataset) for _ in range(kills)]
    assert sum(o.lost for o in outcomes) == 0 and sum(o.bad_published for o in outcomes) == 0
    assert any(o.inside_a_save for o in outcomes), "kills that never met a save prove nothing"
    assert [o.step for o in outcomes] == sorted(o.step for o in outcomes)
    steps = outcomes[-1].step + 2
    digest = trials.finish(tmp_path, tiny_dataset)
    assert digest == trials.straight(tmp_path, tiny_dataset, steps)
    assert_nothing_lost(tmp_path / "run")
    assert_steps_stand_once(tmp_path / "run")
    assert_left_clean(tmp_path / "run")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_k2_a_kill_at_every_call_of_a_save(tiny_dataset, tmp_path, every):
    """One life of the run for each, so that it also starts from what each kill leaves."""
    points = trials.points_of_a_save(tmp_path, tiny_dataset)
    assert {"mkdir", "open", "write", "fsync", "rename", "replace", "rmtree"} <= {
        p.call for p in points
    }
    run = tmp_path / "run"
    for point in points if every else trials.one_of_each(points):
        before = trials.outcome(run).step
        child = call(*command(tiny_dataset, run), cwd=tmp_path, faults=[point])
        assert child.code == -signal.SIGKILL, f"{point}: {child.code} {child.err}"
        after = trials.outcome(run)
        assert not after.lost and not after.bad_published, point
        assert before <= after.step <= before + 2, point
    steps = trials.outcome(run).step + 2
    assert trials.finish(tmp_path, tiny_dataset) == trials.straight(tmp_path, tiny_dataset, steps)
    assert_steps_stand_once(run)
    assert_left_clean(run)


@pytest.mark.parametrize("file", ["STATUS.json", "plan.json", "config.toml"])
def test_k2_a_kill_while_a_record_is_replaced_leaves_nothing_behind(tiny_dataset, tmp_path, file):
    run = tmp_path / "run"
    kill = Fault("replace", "kill", 1, f".{file}.tmp-")
    assert call(*command(tiny_dataset, run), cwd=tmp_path, faults=[kill]).code == -signal.SIGKILL
    assert [p for p in run.iterdir() if ".tmp-" in p.name]
    assert call(*command(tiny_dataset, run, steps=2), cwd=tmp_path).code == 0
    assert_left_clean(run)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("rename", "kill", 1, "checkpoints/step-"),
        Fault("rename", "kill-after", 1, "checkpoints/step-"),
        Fault("unlink", "kill", 2, ".safetensors"),
    ],
    ids=["before the rename", "after it", "half deleted"],
)
def test_k3_a_kill_while_an_old_one_is_let_go(tiny_dataset, tmp_path, fault):
    run = tmp_path / "run"
    child = call(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    assert child.code == -signal.SIGKILL
    newest = [p for p in store.paths(RunFolder(run).checkpoints) if store.fault(p) is None]
    assert [store.place_of(p) for p in newest][-2:] == [(0, 2), (0, 3)]
    half = [name for name in trials.remains(run) if name.startswith(".del-")]
    assert len(half) == (fault.action == "kill-after" or fault.call == "unlink")
    assert call(*command(tiny_dataset, run, steps=4), cwd=tmp_path).code == 0
    assert_left_clean(run)


# Power loss.


def no_fsync() -> None:
    """A system that says so and does nothing."""
    os.fsync = lambda fd: None  # type: ignore[assignment]


@pytest.mark.parametrize("durable", [True, False], ids=["as it is", "without fsync"])
def test_k4_power_lost_at_random_moments(tiny_dataset, tmp_path, durable):
    """What was told to be committed before is there; without fsync it is not, so this test can
    fail."""
    disk, rng = Disk(tmp_path), random.Random(KILL_SEED)
    options = {} if durable else {"setup": no_fsync}
    with mounted(disk.folder, "-o", "loop,commit=300", disk.image):
        child = start(*command(tiny_dataset, disk.run), cwd=tmp_path, **options)
        for _ in range(4):
            since = len(events(disk.run, "checkpoint"))
            child.until(lambda: len(events(disk.run, "checkpoint")) > since + 1)  # noqa: B023
            time.sleep(rng.uniform(0, 0.05))
            child.send(signal.SIGSTOP)
            disk.copy(child)
            child.send(signal.SIGCONT)
        child.kill()
    lost = [disk.lost(copy) for copy in disk.told]
    if not durable:
        assert any(lost)
        return
    assert not any(lost)
    with mounted(disk.folder, "-o", "loop", max(disk.told)):
        steps = trials.outcome(disk.run).step + 2
        digest = trials.finish(disk.folder, tiny_dataset)
        assert_steps_stand_once(disk.run)
    assert digest == trials.straight(tmp_path, tiny_dataset, steps)


@pytest.mark.exhaustive
def test_k4_power_lost_at_each_call_of_a_save(tiny_dataset, tmp_path):
    """Stopped before the call, the image copied, and on."""
    points = [p for p in trials.points_of_a_save(tmp_path, tiny_dataset) if p.action == "kill"]
    disk = Disk(tmp_path)
    with mounted(disk.folder, "-o", "loop,commit=300", disk.image):
        assert call(*command(tiny_dataset, disk.run, steps=2), cwd=tmp_path).code == 0
        for point in trials.one_of_each(points):
            stop = replace(point, action="SIGSTOP")
            child = start(*command(tiny_dataset, disk.run), cwd=tmp_path, faults=[stop])
            process = psutil.Process(child.pid)
            child.until(lambda: process.status() == psutil.STATUS_STOPPED)  # noqa: B023
            disk.copy(child)
            child.kill()
    assert len(disk.told) >= 8 and not any(disk.lost(copy) for copy in disk.told)


class Disk:
    """An ext4 image, copied at moments when the power goes: what only memory holds is not in the
    copy. The file system of the image commits by itself only after five minutes."""

    def __init__(self, tmp_path: Path) -> None:
        self.image, self.folder = tmp_path / "disk.img", tmp_path / "disk"
        self.run = self.folder / "run"
        self.told: dict[Path, str] = {}
        """Copy -> the newest checkpoint that was said to be committed before it."""
        if not shutil.which("mkfs.ext4"):
            pytest.skip("there is no mkfs.ext4 here")
        with open(self.image, "wb") as f:
            f.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)

    def copy(self, child: Child) -> None:
        """Of a process that was just stopped."""
        time.sleep(0.1)  # what is already inside the kernel ends
        assert child.code is None, child.err
        copy = self.image.with_name(f"copy-{len(self.told):03d}.img")
        self.told[copy] = events(self.run, "checkpoint")[-1]["path"]
        shutil.copyfile(self.image, copy)

    def lost(self, copy: Path) -> bool:
        """Whether a copy lacks the checkpoint that it should have, or has one that is not whole."""
        with mounted(self.folder, "-o", "loop", copy):
            found = store.paths(RunFolder(self.run).checkpoints)
            good = [path.name for path in found if store.fault(path) is None]
        return self.told[copy] not in good or len(good) < len(found)


# Order.


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_k5_the_kernel_sees_each_file_synced_before_its_name(tiny_dataset, tmp_path):
    """Each file is synced before the manifest is, that before the folder, that before the rename,
    the parent after it, and only then is it told."""
    trace = tmp_path / "trace"
    arguments = command(tiny_dataset, tmp_path / "run", steps=1)
    done = subprocess.run(
        ["strace", "-f", "-y", "-s", "400", "-o", trace, "--seccomp-bpf",
         "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,write",
         sys.executable, "-m", "outpace", *arguments],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip("tracing is not permitted here")
    assert done.returncode == 0, done.stderr
    seen: list[str] = []
    for line in trace.read_text(errors="replace").splitlines():
        if "resumed>" in line:
            continue
        if match := re.search(r"(?:fsync|fdatasync)\(\d+<(.*?)>", line):
            path = Path(match[1])
            if path.parent.name.startswith(".tmp-"):
                seen.append(path.name)
            elif path.name.startswith(".tmp-"):
                seen.append("folder")
            elif path.name == "checkpoints":
                seen.append("parent")
        elif re.search(r'rename\w*\(.*\.tmp-.*/step-00000001"', line):
            seen.append("rename")
        elif re.search(r"write\(\d+<.*events\.jsonl>.*checkpoint", line):
            seen.append("told")
    assert seen[:7] == [
        store.MODEL, store.OPTIMIZER, store.STATE, store.MANIFEST, "folder", "rename", "parent",
    ]  # fmt: skip
    assert seen.count("told") == 1 and seen.index("told") > seen.index("parent")


# Saving behind the training.


def test_k6_a_writer_that_fails_once_is_tried_again(tiny_dataset, tmp_path):
    fault = Fault("fsync", "EIO", 1, "/.tmp-2-")
    child = call(*command(tiny_dataset, tmp_path / "run", steps=4), cwd=tmp_path, faults=[fault])
    assert child.code == 0 and "trying once more" in child.err
    assert [e["step"] for e in events(tmp_path / "run", "checkpoint")] == [1, 2, 3, 4]
    assert_left_clean(tmp_path / "run")


def test_k6_a_writer_that_keeps_failing_ends_the_run(tiny_dataset, tmp_path):
    """Within the step after the save that fails: nothing is trained that could not be saved."""
    run = tmp_path / "run"
    fault = Fault("fsync", "EIO", 0, "/.tmp-3-")
    child = call(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    line = stopped_by(child, 5, "CKPT-WRITE")
    assert os.strerror(errno.EIO) in line and "kept: the older checkpoints" in line
    assert status(run)["code"] == 5 and status(run)["last_verified_checkpoint"] == "step-00000002"
    assert logged(run) <= 4
    assert_nothing_lost(run)
    assert not trials.remains(run) or trials.remains(run) == [store.LATEST]


def test_k6_a_slow_writer_is_waited_for_by_the_next_save(tiny_dataset, tmp_path):
    """The calls of one save all come before those of the next."""
    log = tmp_path / "calls.log"
    faults = [
        Fault("fsync", "sleep:0.05", 0, "/.tmp-"),
        *(Fault(name, f"log:{log}", 0, "/.tmp-") for name in ("mkdir", "open", "fsync", "rename")),
    ]
    child = call(*command(tiny_dataset, tmp_path / "run", steps=6), cwd=tmp_path, faults=faults)
    assert child.code == 0, child.err
    order = [int(s) for s in re.findall(r"/\.tmp-(\d+)-", log.read_text())]
    assert order == sorted(order) and set(order) == set(range(1, 7))


def fail_before_the_loop() -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    loop.Evaluation = fail  # type: ignore[assignment, misc]


def test_a_run_that_fails_as_it_begins_waits_for_its_writer(tiny_dataset, tmp_path):
    """Else the folder's next process begins, and sweeps, beside one that still writes there, and
    STATUS.json at last says that it is running."""
    assert call(*command(tiny_dataset, tmp_path / "first", steps=2), cwd=tmp_path).code == 0
    [newest] = (tmp_path / "first").glob("checkpoints/step-00000002")
    run, slow = tmp_path / "run", Fault("fsync", "sleep:1", 1, "/.tmp-2-")
    argv = command(tiny_dataset, run, "--resume", str(newest), steps=4)  # saved in this run first
    child = call(*argv, cwd=tmp_path, faults=[slow], setup=fail_before_the_loop)
    assert child.code == 5, child.err
    assert status(run)["state"] == "failed"
    assert status(run)["last_verified_checkpoint"] == newest.name
    assert_nothing_lost(run)
    assert_left_clean(run)


def test_k7_what_is_saved_is_what_was_there_when_the_save_began(tmp_path):
    """The writer starts only after every tensor was changed in place."""
    g = torch.Generator().manual_seed(0)
    files = {
        store.MODEL: {"w": torch.randn(50, 30, generator=g), "t": torch.randn(8, 9).t()},
        store.OPTIMIZER: {"w::step": torch.tensor(7.0), "w::exp_avg": torch.randn(50, 30)},
    }
    then = {name: {n: t.clone() for n, t in tensors.items()} for name, tensors in files.items()}
    digest = store.weights_sha256(files[store.MODEL])
    changed = threading.Event()

    def write(copied: Any) -> Path:
        assert changed.wait(30)
        return store.save(tmp_path, 1, copied, {})

    done: list[Path] = []
    saver = Saver(background=True)
    saver.save(files, write, lambda path, *_: done.append(path))
    with torch.no_grad():
        for tensors in files.values():
            for tensor in tensors.values():
                tensor.mul_(-2).add_(1)
    changed.set()
    saver.wait()
    assert store.weights_sha256(load_file(done[0] / store.MODEL)) == digest
    for name, tensors in then.items():
        read = load_file(done[0] / name)
        assert all(torch.equal(read[n], t) for n, t in tensors.items())


def test_k7_saves_behind_and_in_front_of_the_training_are_the_same_bytes(tiny_dataset, tmp_path):
    for name, flag in (("behind", "--async_save"), ("front", "--no_async_save")):
        extra = (flag, "--keep_checkpoints", "20", "--dropout", "0.1", "--no_use_flash_attention")
        arguments = command(tiny_dataset, tmp_path / name, *extra, steps=12)
        assert call(*arguments, cwd=tmp_path).code == 0
    for step in range(1, 13):
        for file in (store.MODEL, store.OPTIMIZER):
            behind, front = (
                tmp_path / name / "checkpoints" / store.name_of(step, 0) / file
                for name in ("behind", "front")
            )
            assert behind.read_bytes() == front.read_bytes(), f"{file} of step {step}"


# The thread that reads ahead.


def reading(step: int, what: str) -> None:
    """The loader's thread, which is to read the `step`-th step, raises or hangs."""
    real = Loader.read_step

    def read_step(self: Loader, at: int, out: np.ndarray) -> None:
        if at == step and threading.current_thread().name == "outpace-loader":
            if what == "hangs":
                threading.Event().wait()
            raise OSError(errno.EIO, os.strerror(errno.EIO), "shard.bin")
        real(self, at, out)

    Loader.read_step = read_step  # type: ignore[method-assign]


def test_k8_a_loader_thread_that_fails_ends_the_run_with_its_reason(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    child = call(
        *command(tiny_dataset, run), cwd=tmp_path, setup=reading, args=(5, "raises"), timeout=60
    )
    line = stopped_by(child, 5, "STORAGE")
    assert os.strerror(errno.EIO) in line and "shard.bin" in line
    assert logged(run) == 5 and events(run, "checkpoint")[-1]["step"] == 5
    assert_nothing_lost(run)


def test_k8_a_loader_thread_that_hangs_is_ended_by_the_watchdog(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, "--watchdog_minutes", "0.05")
    child = call(*arguments, cwd=tmp_path, setup=reading, args=(5, "hangs"), timeout=60)
    stopped_by(child, 9, "STUCK")
    assert any("read_ahead" in p.read_text() for p in run.glob("stacks-*.txt"))
    assert_nothing_lost(run)


# Several processes.


def of_two(dataset: Path, run: Path, *extra: str, steps: int = trials.ENDLESS) -> list[str]:
    """A run whose batch is that of `command`."""
    return command(dataset, run, "--gradient_accumulation_steps", "1", *extra, steps=steps)


def two_in_training(dataset: Path, tmp_path: Path, *extra: str) -> list[Child]:
    """Two processes of a run that has saved some times."""
    run = tmp_path / "run"
    children = start_ranks(2, *of_two(dataset, run, *extra), cwd=tmp_path)
    children[0].until(lambda: len(events(run, "checkpoint")) > 3)
    assert children[0].code is None, children[0].err
    return children


def test_k9_a_killed_rank_is_named_by_the_other_and_the_run_goes_on(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    first, second = two_in_training(tiny_dataset, tmp_path)
    second.kill()
    first.wait(30)
    stopped_by(first, 9, "PEER-LOST")
    assert status(run)["state"] == "failed" and status(run)["code"] == 9
    assert_nothing_lost(run)
    steps = trials.outcome(run).step + 2
    for name in ("run", "straight"):
        children = call_ranks(2, *of_two(tiny_dataset, tmp_path / name, steps=steps), cwd=tmp_path)
        assert [child.code for child in children] == [0, 0], children[0].err
    assert len({status(tmp_path / n)["weights_sha256"] for n in ("run", "straight")}) == 1


def test_k10_a_rank_that_is_silent_is_given_up(tiny_dataset, tmp_path):
    """SIGSTOP: it lives, and does nothing."""
    run = tmp_path / "run"
    first, second = two_in_training(tiny_dataset, tmp_path, "--peer_timeout_minutes", "0.05")
    second.send(signal.SIGSTOP)
    try:
        first.wait(60)
    finally:
        second.kill()
    stopped_by(first, 9, "PEER-LOST")
    assert status(run)["state"] == "failed" and status(run)["code"] == 9
    assert_nothing_lost(run)


def test_k11_all_ranks_leave_when_only_the_first_cannot_save(tiny_dataset, tmp_path):
    """Only the first process writes, and its disk is full."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=900k", "none") as small:
        run = small / "run"
        extra = ("--no_space_check", "--milestone_every_steps", "1")
        children = call_ranks(2, *of_two(tiny_dataset, run, *extra), cwd=tmp_path)
        for child, name in zip(children, ("CKPT-SPACE", "PEER-FAILED"), strict=True):
            stopped_by(child, 5, name)
        assert status(run)["state"] == "failed" and status(run)["code"] == 5
        assert_nothing_lost(run)


def test_k11_what_ends_another_process_is_written_down_as_it_is(tiny_dataset, tmp_path):
    """Not as a lost one, which would be tried again: the second cannot read its data."""
    run = tmp_path / "run"
    children = call_ranks(
        2, *of_two(tiny_dataset, run), cwd=tmp_path, setup=poison.unreadable_data, args=(3, 1)
    )
    stopped_by(children[1], 3, "DATA-DAMAGED")
    stopped_by(children[0], 3, "PEER-FAILED")
    assert status(run)["state"] == "failed" and status(run)["code"] == 3
    assert_nothing_lost(run)


@pytest.mark.exhaustive
def test_k12_torchrun_starts_them_again_and_the_run_ends_as_it_should(tiny_dataset, tmp_path):
    run, steps = tmp_path / "run", 80
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*torchrun, "--nproc_per_node=2", "--max-restarts=2", "-m", "outpace",
         *of_two(tiny_dataset, run, steps=steps)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and len(events(run, "checkpoint")) < 3:
        time.sleep(0.01)
    ranks = psutil.Process(process.pid).children(recursive=True)
    os.kill(next(r.pid for r in ranks if r.environ().get("RANK") == "1"), signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert len(events(run, "started")) == 2 and len(events(run, "resumed")) == 1
    assert_steps_stand_once(run)
    straight = of_two(tiny_dataset, tmp_path / "straight", steps=steps)
    assert [child.code for child in call_ranks(2, *straight, cwd=tmp_path)] == [0, 0]
    assert len({status(tmp_path / n)["weights_sha256"] for n in ("run", "straight")}) == 1


def assert_left_clean(run: Path) -> None:
    """Nothing but the run's own files, checkpoints and the hint; the lock is free."""
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == [".lock"]
    there = {p.name for p in RunFolder(run).checkpoints.iterdir()}
    assert there == {store.LATEST, *(p.name for p in store.paths(RunFolder(run).checkpoints))}
    assert_tidy(run)
