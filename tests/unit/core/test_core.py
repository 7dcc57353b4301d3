"""The small things everything stands on: errors, files, tables, units, the run folder's records."""

import errno
import json
import os
import threading
import tracemalloc

import pytest

from outpace.core import errors, units
from outpace.core.crash import explain
from outpace.core.errors import OutpaceError, RunInUse, StorageError, UsageError
from outpace.core.files import append_json_line, read_json_lines, replace_file, replace_json
from outpace.core.registry import Registry, nearest
from outpace.core.runfolder import RunFolder


def test_an_error_is_one_line_with_name_what_kept_and_do():
    error = UsageError("NAME", "what", do="this", kept="that")
    assert str(error) == "error[NAME]: what; kept: that; do: this"
    assert str(OutpaceError("NAME", "what")) == "error[NAME]: what"


def test_every_kind_of_error_has_the_documented_exit_code():
    codes = {
        c.__name__: c.exit_code
        for c in OutpaceError.__subclasses__()
        if c.__module__ == errors.__name__
    }
    assert codes == {
        "UsageError": 2, "DataError": 3, "CheckpointError": 4, "StorageError": 5,
        "NumericsError": 6, "OutOfMemory": 7, "RunInUse": 8, "PeerLost": 9, "NetworkError": 10,
        "NotMet": 11, "Stopped": 75,
    }  # fmt: skip
    assert (errors.DONE, errors.BUG, errors.STOPPED_RESUMABLE) == (0, 1, 75)


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "name", "code"),
    [
        (UsageError("X", "y"), "X", 2),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "STORAGE", 5),
        (OSError(errno.ENOSPC, "No space left on device"), "STORAGE", 5),
        (OSError("no errno"), "STORAGE", 5),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "MEMORY", 7),
        (MemoryError(), "MEMORY", 7),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "MEMORY", 7),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "MEMORY", 7),
        (RuntimeError("CUDA error: out of memory"), "MEMORY", 7),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `c`"), "MEMORY", 7),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "NETWORK", 10),
        (RuntimeError("shape mismatch"), "BUG", 1),
        (KeyError("x"), "BUG", 1),
        (AssertionError(), "BUG", 1),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else str(x),
)
def test_an_exception_becomes_its_error_and_exit_code(error, name, code, tmp_path):
    known = explain(error, tmp_path)
    assert (known.name, known.exit_code) == (name, code)
    assert "\n" not in str(known)
    assert bool(list(tmp_path.glob("crash-*.txt"))) is (code == 1)


def test_the_line_of_a_storage_error_names_the_path():
    assert "/some/where: No space" in str(explain(OSError(errno.ENOSPC, "No space", "/some/where")))
    assert "/some/where: No space" in str(
        explain(OSError(errno.ENOSPC, "No space", b"/some/where"))
    )


def test_a_crash_file_holds_the_traceback_and_its_line_names_it(tmp_path):
    try:
        _ = [][1]
    except IndexError as error:
        known = explain(error, tmp_path)
    (path,) = tmp_path.glob("crash-*.txt")
    assert str(path) in known.do
    text = path.read_text()
    assert "Traceback" in text
    assert "_ = [][1]" in text


def test_a_crash_file_goes_to_the_temporary_folder_when_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    known = explain(ValueError("x"), tmp_path / "not there")
    (path,) = tmp_path.glob("crash-*.txt")
    assert str(path) in known.do


def test_a_crash_file_that_cannot_be_written_anywhere_is_no_second_crash(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    assert "OUTPACE_TRACEBACK=1" in explain(ValueError("x")).do


def test_with_a_traceback_asked_for_there_is_no_crash_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPACE_TRACEBACK", "1")
    explain(ValueError("x"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path):
    path = tmp_path / "é x.json"
    replace_file(path, "old")
    replace_json(path, {"nan": float("nan"), "inf": [float("inf")], "text": "é", "n": 1.5})
    assert json.loads(path.read_text("utf-8")) == {
        "nan": None,
        "inf": [None],
        "text": "é",
        "n": 1.5,
    }
    assert [p.name for p in tmp_path.iterdir()] == ["é x.json"]


def test_a_file_name_that_is_not_utf8_survives_in_json(tmp_path):
    name = os.fsdecode(b"na\xefve")
    replace_json(tmp_path / "x.json", [name])
    append_json_line(tmp_path / "x.jsonl", {"name": name})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == [name]
    assert list(read_json_lines(tmp_path / "x.jsonl")) == [{"name": name}]


def test_a_file_that_cannot_be_replaced_is_left_as_it_was(tmp_path):
    folder = tmp_path / "x"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot write"):
        replace_file(folder, "text")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    with pytest.raises(StorageError, match="cannot write"):
        replace_file(tmp_path / "no" / "such", "text")


def test_damaged_lines_are_left_out_and_the_others_read(tmp_path):
    path = tmp_path / "x.jsonl"
    assert list(read_json_lines(path)) == []
    append_json_line(path, {"step": 1, "loss": float("nan")})
    with open(path, "ab") as f:
        f.write(b'\n[1]\n\xff\xfe{"a"\n{"step": 2}\n{"step": 3, "lo')
    assert list(read_json_lines(path)) == [{"step": 1, "loss": None}, {"step": 2}]
    path.write_bytes(b"[" * 100_000 + b'\n{"step": 1}\n')
    assert list(read_json_lines(path)) == [{"step": 1}]


def test_secrets_are_looked_up_once_for_a_file_not_once_for_each_text(tmp_path, monkeypatch):
    looked_up = []

    class Environment(dict):
        def items(self):
            looked_up.append(1)
            return super().items()

    monkeypatch.setattr(os, "environ", Environment(HF_TOKEN="hf_0123456789"))
    replace_json(tmp_path / "x.json", {"files": ["hf_0123456789.txt", "b.txt", "c.txt"]})
    assert json.loads((tmp_path / "x.json").read_text())["files"] == ["***.txt", "b.txt", "c.txt"]
    assert len(looked_up) == 1


def test_a_line_that_was_cut_swallows_no_later_one(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    for step in (3, 4):
        append_json_line(path, {"step": step})
    assert list(read_json_lines(path)) == [{"step": 1}, {"step": 3}, {"step": 4}]
    assert path.read_bytes().count(b"\n") == 4


def test_a_resume_forgets_later_steps_and_a_cut_line(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3, 4):
        append_json_line(folder.metrics, {"step": step})
    with open(folder.metrics, "a") as f:
        f.write('{"step": null}\n{"step": 5, "lo')
    folder.forget_after(2)
    assert folder.metrics.read_text() == '{"step":1}\n{"step":2}\n'
    untouched = folder.metrics.stat().st_mtime_ns
    folder.forget_after(2)
    assert folder.metrics.stat().st_mtime_ns == untouched


def test_records_as_long_as_a_long_runs_are_not_held_in_memory(tmp_path):
    folder = RunFolder(tmp_path)
    whole = b"".join(b'{"step":%d,"loss":%d}\n' % (n, 10**100) for n in range(20_000))
    folder.metrics.write_bytes(whole)
    tracemalloc.start()
    try:
        folder.forget_after(19_998)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert folder.metrics.read_bytes() == whole[: whole.rstrip().rindex(b"\n") + 1]
    assert peak < len(whole) / 4


def test_one_process_at_a_time_holds_a_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    lock = folder.lock()
    folder.write_status("running")
    caught = []

    def second():
        with pytest.raises(RunInUse) as error:
            folder.lock()
        caught.append(str(error.value))

    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert f"pid {os.getpid()}" in caught[0]
    lock.release()
    folder.lock().release()


def test_a_lock_is_refused_even_when_the_status_of_its_holder_is_nonsense(tmp_path):
    folder = RunFolder(tmp_path)
    folder.status.write_text("[1]")
    lock = folder.lock()
    with pytest.raises(RunInUse):
        RunFolder(tmp_path).lock()
    lock.release()


def test_a_run_folder_below_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="Not a directory"):
        RunFolder(tmp_path / "file" / "run").create()


def test_an_unknown_row_of_a_table_names_the_nearest_and_all():
    table = Registry("data source", {"files": "json:loads", "pydocs": "json"})
    assert table.load("files") is json.loads
    assert table.load("pydocs") is json
    with pytest.raises(UsageError) as error:
        table.load("file")
    assert error.value.name == "UNKNOWN-DATA-SOURCE"
    assert "no data source 'file' (did you mean files?)" in error.value.what
    assert error.value.do == "choose one of files, pydocs"


def test_nothing_is_suggested_when_nothing_is_near():
    assert nearest("zzz", ["abc"]) == ""


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.count(0), "0"), (units.count(999), "999"), (units.count(1234567), "1.23M"),
        (units.count(1e10), "10B"), (units.gib(2**30), "1.00 GiB"), (units.gib(2**20), "1.0 MiB"),
        (units.duration(59.4), "59s"), (units.duration(59.6), "1m00s"),
        (units.duration(3725), "1h02m"), (units.duration(90_000), "1d01h"),
        (units.count(999_999), "1M"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(shown, expected):
    assert shown == expected
