"""Saving behind the training: what it hands over, raises, tries again and gives up."""

import threading
from pathlib import Path

import pytest
import torch

from outpace.checkpoint import saver as module
from outpace.checkpoint.saver import SPARE_BYTES, Files, Saver, check_finite
from outpace.core.errors import CheckpointError, NumericsError, StorageError
from outpace.runtime import hardware


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.0)


def files(value: float = 1.0) -> Files:
    return {"model": {"w": torch.full((3, 2), value), "n": torch.tensor([1, 2])}}


class Writer:
    """A `Write` that keeps what it was given, and fails as often as it was told to."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.tries = 0
        self.written: list[float] = []
        self.threads: list[str] = []

    def __call__(self, given: Files) -> Path:
        self.tries += 1
        self.threads.append(threading.current_thread().name)
        if self.errors:
            raise self.errors.pop(0)
        self.written.append(float(given["model"]["w"][0, 0]))
        return Path(f"number-{len(self.written)}")


def failure(name: str = "CKPT-WRITE") -> StorageError:
    return StorageError(name, "cannot write", do="mend it")


@pytest.mark.parametrize(("background", "thread"), [(True, "outpace-saver"), (False, "MainThread")])
def test_each_save_is_written_and_told(background, thread):
    saver, write, told = Saver(background=background), Writer(), []
    for value in (1.0, 2.0, 3.0):
        saver.save(files(value), write, lambda path, stall_s, write_s: told.append((path, stall_s)))
    saver.wait()
    assert write.written == [1.0, 2.0, 3.0] and set(write.threads) == {thread}
    assert [str(path) for path, _ in told] == ["number-1", "number-2", "number-3"]


def test_training_goes_on_while_it_is_written_and_the_next_save_waits():
    saver, go_on, order = Saver(background=True), threading.Event(), []

    def slow(given: Files) -> Path:
        assert go_on.wait(30)
        order.append(float(given["model"]["w"][0, 0]))
        return Path("x")

    saver.save(files(1.0), slow, lambda *_: None)
    order.append("training")
    go_on.set()
    saver.save(files(2.0), slow, lambda *_: None)
    assert order[:2] == ["training", 1.0], "written before the next save began"
    saver.wait()
    assert order[2:] == [2.0]


@pytest.mark.parametrize("background", [True, False])
def test_how_long_training_waited_and_how_long_it_took_are_told(background, monkeypatch):
    """Each write takes five seconds. In the background training waits for it only when it saves
    again, and that counts as part of the next save's stall."""
    now, waited_for, told = 100.0, threading.Event(), []
    main = threading.current_thread()

    def clock() -> float:
        read = now
        if saver._thread is not None and threading.current_thread() is main:
            waited_for.set()
        return read

    def write(given: Files) -> Path:
        nonlocal now
        if threading.current_thread() is not main:
            assert waited_for.wait(30)
            waited_for.clear()
        now += 5.0
        return Path("x")

    saver = Saver(background=background)
    monkeypatch.setattr(module.time, "perf_counter", clock)
    for _ in range(3):
        saver.save(files(), write, lambda path, stall_s, write_s: told.append((stall_s, write_s)))
    saver.wait()
    assert told == ([(0.0, 5.0), (5.0, 10.0), (5.0, 10.0)] if background else [(5.0, 5.0)] * 3)


@pytest.mark.parametrize("background", [True, False])
def test_a_write_is_tried_twice_and_no_more(background, capsys):
    saver, write, told = Saver(background=background), Writer(failure()), []
    saver.save(files(), write, lambda *_: told.append(1))
    saver.wait()
    assert write.tries == 2 and told == [1] and "once more" in capsys.readouterr().err

    write = Writer(failure(), failure())
    with pytest.raises(StorageError):
        saver.save(files(), write, lambda *_: told.append(1))
        saver.wait()
    assert write.tries == 2 and told == [1]


def test_what_the_first_try_failed_with_is_told_where_it_took_the_name():
    saver, taken = Saver(background=False), CheckpointError("CKPT-EXISTS", "there", do="wait")
    saver.save(files(), Writer(failure(), taken), lambda *_: None)
    with pytest.raises(StorageError, match="cannot write"):
        saver.wait()


def test_a_lack_of_space_is_not_tried_again():
    saver, write = Saver(background=False), Writer(failure("CKPT-SPACE"))
    with pytest.raises(StorageError, match="cannot write"):
        saver.save(files(), write, lambda *_: None)
        saver.wait()
    assert write.tries == 1


def test_what_failed_is_raised_once_and_by_the_next_save_at_the_latest():
    saver, write = Saver(background=True), Writer(ValueError("a bug"))
    saver.save(files(), write, lambda *_: None)
    saver.join()
    with pytest.raises(ValueError, match="a bug"):
        saver.save(files(2.0), write, lambda *_: None)
    assert write.written == []
    saver.poll()
    saver.save(files(3.0), write, lambda *_: None)
    saver.wait()
    assert write.written == [3.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("background", [True, False])
def test_what_is_not_finite_is_never_written(background, value):
    saver, write, one = Saver(background=background), Writer(), files()
    one["model"]["w"][1, 1] = value
    with pytest.raises(NumericsError, match=r"w \(model\) is not finite"):
        saver.save(one, write, lambda *_: None)
        saver.wait()
    assert write.tries == 0
    check_finite({"model": {"n": torch.tensor([2**62]), "b": torch.tensor([True])}})


def test_without_memory_for_a_copy_training_waits(monkeypatch, capsys):
    """A container may have far less memory than its machine."""
    monkeypatch.setattr(hardware, "memory_limits", lambda _groups: [(SPARE_BYTES, 10)])
    saver, write = Saver(background=True), Writer()
    saver.save(files(4.0), write, lambda *_: None)
    assert write.written == [4.0] and write.threads == ["MainThread"]
    assert not saver.background and "SAVE-IN-FRONT" in capsys.readouterr().err


def test_where_no_thread_can_be_started_training_waits_for_the_save(monkeypatch, capsys):
    def start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    saver, write, told = Saver(background=True), Writer(), []
    saver.save(files(), write, lambda *_: told.append(1))
    saver.wait()
    assert write.written and told == [1] and "[SAVE-IN-FRONT]" in capsys.readouterr().err
