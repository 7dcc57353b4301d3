"""Disks that are full, limited, read-only, failing, slow or gone."""

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import trials
from harness import (
    Fault,
    Sentinel,
    assert_nothing_lost,
    assert_steps_stand_once,
    assert_tidy,
    call,
    events,
    logged,
    start,
    status,
)
from trials import command, mount, mounted, stopped_by

from outpace.checkpoint import store
from outpace.checkpoint.saver import Saver
from outpace.core.errors import StorageError

KEEP_ALL = ("--no_space_check", "--milestone_every_steps", "1")


def assert_kept_and_resumable(run: Path) -> None:
    """What was committed is whole, nothing half is left, and STATUS.json says how it ended."""
    assert_nothing_lost(run)
    assert_tidy(run)
    record = status(run)
    assert (record["state"], record["code"], record["resumable"]) == ("failed", 5, True)
    assert record["last_verified_checkpoint"] == events(run, "checkpoint")[-1]["path"]


def assert_goes_on(run: Path, dataset: Path, tmp_path: Path) -> None:
    """Once the disk is well, the same command ends in the weights of a run that had no trouble."""
    steps = trials.outcome(run).step + 2
    digest = trials.finish(run.parent, dataset)
    assert digest == trials.straight(tmp_path, dataset, steps)
    assert_steps_stand_once(run)


def test_d1_a_full_disk_is_seen_before_the_save_and_keeps_the_last_good(tiny_dataset, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "none") as disk:
        run = disk / "run"
        child = call(*command(tiny_dataset, run, *KEEP_ALL), cwd=tmp_path)
        line = stopped_by(child, 5, "CKPT-SPACE")
        assert "a checkpoint needs" in line and "free; kept: the older checkpoints" in line
        assert len(events(run, "checkpoint")) >= 2
        assert_kept_and_resumable(run)
        mount("-o", "remount,size=8m", disk)
        assert_goes_on(run, tiny_dataset, tmp_path)


def blind() -> None:
    """The system tells of room that is not there, as with quotas or a disk shared with others."""
    store.check_space = lambda folder, tensors: None  # type: ignore[assignment]


def test_d1_a_disk_that_fills_up_inside_a_save_keeps_the_last_good(tiny_dataset, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "none") as disk:
        run = disk / "run"
        child = call(*command(tiny_dataset, run, *KEEP_ALL), cwd=tmp_path, setup=blind)
        line = stopped_by(child, 5, "CKPT-WRITE")
        assert os.strerror(errno.ENOSPC) in line
        assert_kept_and_resumable(run)


def test_d2_a_limit_on_the_size_of_files(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    assert call(*command(tiny_dataset, run, steps=2), cwd=tmp_path).code == 0
    limits = {resource.RLIMIT_FSIZE: 30_000}
    child = call(*command(tiny_dataset, run), cwd=tmp_path, limits=limits)
    assert os.strerror(errno.EFBIG) in stopped_by(child, 5, "CKPT-WRITE")
    assert status(run)["last_verified_checkpoint"] == "step-00000002"
    assert_kept_and_resumable(run)
    assert_goes_on(run, tiny_dataset, tmp_path)


WIDE = ("--n_embd", "64", "--n_layer", "2")
"""A checkpoint of 1.4 MB: two kept, the one being written and the best are 5.6 MB."""


def test_d3_too_little_room_is_refused_before_training(tiny_dataset, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=5200k", "none") as disk:
        arguments = command(tiny_dataset, disk / "run", *WIDE, steps=4)
        line = stopped_by(call(*arguments, cwd=tmp_path), 5, "SPACE")
        assert "4 checkpoints of" in line and f"{disk} has" in line and "--no_space_check" in line
        assert not list(disk.iterdir()), "nothing was written"
        child = call(*arguments, "--no_space_check", cwd=tmp_path)
        assert child.code == 0, child.err
        assert [p.name for p in store.paths(disk / "run" / "checkpoints")] == [
            "step-00000003", "step-00000004",
        ]  # fmt: skip


def test_d4_no_inodes_left(tiny_dataset, tmp_path):
    """Bytes are free, and no file can be made."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "nr_inodes=40", "none") as disk:
        run = disk / "run"
        child = call(*command(tiny_dataset, run, *KEEP_ALL), cwd=tmp_path)
        assert os.strerror(errno.ENOSPC) in stopped_by(child, 5, "CKPT-WRITE")
        assert_nothing_lost(run)  # STATUS.json needs an inode, too
        assert_tidy(run)
        mount("-o", "remount,nr_inodes=4000", disk)
        assert_goes_on(run, tiny_dataset, tmp_path)


def test_d5_records_that_cannot_be_written_cost_a_warning_and_not_the_run(tiny_dataset, tmp_path):
    """metrics.jsonl lies on a disk of one page."""
    run, steps = tmp_path / "run", 60
    run.mkdir()
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4k", "none") as small:
        (run / "metrics.jsonl").symlink_to(small / "metrics.jsonl")
        child = call(*command(tiny_dataset, run, steps=steps, save_every=20), cwd=tmp_path)
        assert child.code == 0, child.err
        assert child.err.count("[DEGRADED]") == 1 and os.strerror(errno.ENOSPC) in child.err
        assert 1 < logged(run) < steps and (small / "metrics.jsonl").stat().st_size == 4096
    assert events(run, "checkpoint")[-1]["step"] == steps
    assert_nothing_lost(run)
    assert status(run)["weights_sha256"] == trials.straight(tmp_path, tiny_dataset, steps)


def test_d6_a_folder_that_is_read_only_from_the_start(tiny_dataset, tmp_path):
    """A new run, and one that stands there already."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "none") as disk:
        run = disk / "run"
        assert call(*command(tiny_dataset, run, steps=2), cwd=tmp_path).code == 0
        mount("-o", "remount,ro", disk)
        for name, error in (("new", "RUN-DIR"), ("run", "STORAGE")):
            child = call(*command(tiny_dataset, disk / name), cwd=tmp_path)
            line = stopped_by(child, 5, error)
            assert os.strerror(errno.EROFS) in line and str(disk / name) in line
        assert_nothing_lost(run)


def test_d7_a_disk_that_becomes_read_only(tiny_dataset, tmp_path):
    """What ext4 does to a disk that fails: from one moment to the next, with files open."""
    image = tmp_path / "disk.img"
    with open(image, "wb") as f:
        f.truncate(32 << 20)
    if not (make := shutil.which("mkfs.ext4")):
        pytest.skip("there is no mkfs.ext4 here, or not for this user")
    subprocess.run([make, "-q", image], check=True)
    disk = tmp_path / "disk"
    with mounted(disk, "-o", "loop", image):
        run = disk / "run"
        child = start(*command(tiny_dataset, run), cwd=tmp_path)
        child.until(lambda: len(events(run, "checkpoint")) > 3)
        mount("-o", "remount,abort", disk)
        child.wait()
        stopped_by(child, 5, "CKPT-WRITE")
        assert child.err.count("trying once more") == 1
        told = events(run, "checkpoint")[-1]["path"]
        assert store.fault(run / "checkpoints" / told) is None
    # Of a copy: where another process's mount namespace keeps the failed disk mounted, mounting its
    # image again gives that disk, still read-only.
    well = shutil.copy(image, tmp_path / "well.img")
    subprocess.run(["fsck.ext4", "-p", well], check=False, capture_output=True)
    with mounted(disk, "-o", "loop", well):
        assert store.fault(run / "checkpoints" / told) is None
        assert_goes_on(run, tiny_dataset, tmp_path)


@pytest.mark.parametrize("call_", ["write", "fsync", "open", "rename"])
def test_d8_a_disk_that_fails_is_never_told_to_have_saved(tiny_dataset, tmp_path, call_):
    run = tmp_path / "run"
    fault = Fault(call_, "EIO", 0, "/.tmp-3-")
    child = call(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    assert os.strerror(errno.EIO) in stopped_by(child, 5, "CKPT-WRITE")
    assert [e["step"] for e in events(run, "checkpoint")] == [1, 2]
    assert_kept_and_resumable(run)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_d8_a_failing_call_leaves_the_older_one_and_no_remains(tmp_path, monkeypatch, name, number):
    save(tmp_path, 1)

    def fails(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.os, name, fails)
    with pytest.raises(StorageError) as caught:
        save(tmp_path, 2)
    monkeypatch.undo()
    assert caught.value.exit_code == 5 and os.strerror(number) in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000001", store.LATEST}
    assert store.latest(tmp_path).step == 1


def test_d8_a_name_that_is_not_durable_is_taken_back(tmp_path, monkeypatch):
    """The fsync of the parent fails, when all else is done; a second try then succeeds."""
    real, failed = os.fsync, []

    def fsync(fd):
        if os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path) and not failed:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError):
        save(tmp_path, 1)
    assert failed and not list(tmp_path.iterdir())
    assert store.fault(save(tmp_path, 1)) is None


@pytest.mark.parametrize("background", [True, False])
def test_d7_a_name_that_cannot_be_taken_back_is_the_disk_that_failed(
    tmp_path, monkeypatch, background
):
    """Read-only between the rename and the fsync of the parent: the second try finds the name of
    the first, and what is told is the disk, not the name."""
    rename, fsync, told = os.rename, os.fsync, []

    def fsync_once(fd):
        if os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        fsync(fd)

    def rename_once(a, b):
        if Path(a).name == "step-00000001":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        rename(a, b)

    monkeypatch.setattr(os, "fsync", fsync_once)
    monkeypatch.setattr(os, "rename", rename_once)
    saver = Saver(background=background)
    files = {store.MODEL: {"w": torch.ones(2, 2)}}
    saver.save(files, lambda given: store.save(tmp_path, 1, given, {}), lambda *_: told.append(1))
    with pytest.raises(StorageError, match=os.strerror(errno.EROFS)) as caught:
        saver.wait()
    assert caught.value.name == "CKPT-WRITE" and not told
    assert store.fault(tmp_path / "step-00000001") is None, (
        "the next start takes it, if it is whole"
    )


def test_d9_a_run_folder_that_is_deleted_is_not_made_anew(tiny_dataset, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine.txt").write_text("mine")
    run = tmp_path / "runs" / "run"
    child = start(*command(tiny_dataset, run), cwd=tmp_path)
    child.until(lambda: len(events(run, "checkpoint")) > 2)
    others = Sentinel(tmp_path / "runs", run)
    run.rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    child.wait()
    assert os.strerror(errno.ENOENT) in stopped_by(child, 5, "CKPT-WRITE")
    assert not run.exists()
    others.check()


def test_d13_training_does_not_wait_for_a_slow_disk(tiny_dataset, tmp_path):
    """Each file and folder takes half a second; the first save has the steps after it to itself."""
    run = tmp_path / "run"
    fault = Fault("fsync", "sleep:0.5", 0, "/.tmp-")
    arguments = command(tiny_dataset, run, steps=10, save_every=5)
    child = call(*arguments, cwd=tmp_path, faults=[fault])
    assert child.code == 0, child.err
    first, second = events(run, "checkpoint")
    assert first["seconds"] >= 2.5 and first["stall_s"] < first["seconds"] / 4
    assert second["step"] == 10, "the next save waited, and was not left out"


def save(folder: Path, step: int) -> Path:
    return store.save(folder, step, {store.MODEL: {"w": torch.arange(12.0)}}, {})
