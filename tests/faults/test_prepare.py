"""`outpace prepare` that is killed, stopped or runs out of disk, and is then started again, writes
the same files as one that was left alone.
"""

import errno
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import xxhash
from conftest import ROOT, write_corpus
from trials import mount, mounted

from outpace.core.errors import DataError, StorageError
from outpace.data.journal import GROWING, Journal
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shard_file import SPLITS, read_header
from outpace.data.shards import open_dataset, verify_dataset
from outpace.data.sources.files import FilesSource
from outpace.data.sources.readers import Reading

KILL_SEED = int(os.environ.get("KILL_SEED", "20260102"))
DOCUMENTS = 70
OPTIONS = PrepareOptions(tokenizer="bytes", val_fraction=0.15, shard_tokens=1500)


class Killed(BaseException):
    """The process ends here; nothing catches it, as nothing catches a SIGKILL."""


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), DOCUMENTS)


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that was left alone writes."""
    folder = tmp_path_factory.mktemp("straight") / "made"
    prepare(FilesSource([str(corpus)]), folder, OPTIONS, workers=1)
    assert len(list(folder.glob("*.bin"))) > 20
    return content(folder)


def start(corpus: Path, folder: Path, *, most_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.Popen(
        [
            *(sys.executable, "-m", "outpace", "prepare", "files", "--input", str(corpus)),
            *("--output", str(folder), "--tokenizer", OPTIONS.tokenizer, "--workers", "2"),
            *("--val_fraction", str(OPTIONS.val_fraction)),
            *("--shard_tokens", str(OPTIONS.shard_tokens)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=limit,
    )


def wait_for_shards(process: subprocess.Popen[str], folder: Path, shards: int) -> None:
    """Return when so many shards are there, or the process has ended."""
    while process.poll() is None and len(list(folder.glob("*.bin"))) < shards:
        time.sleep(0.001)


def finish(corpus: Path, folder: Path) -> None:
    process = start(corpus, folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def assert_resumable(folder: Path) -> None:
    """What has its final name is whole."""
    for path in folder.glob("*.bin"):
        assert read_header(path) > 0
    if (folder / ".prepare.json").exists():
        for shard in json.loads((folder / ".prepare.json").read_text())["shards"]:
            assert (folder / shard["file"]).exists()
            assert (folder / shard["file"]).with_suffix(".len").exists()


@pytest.mark.exhaustive
def test_p8_eight_kills_at_random_moments_change_nothing(corpus, uninterrupted, tmp_path):
    folder = tmp_path / "made"
    rng = random.Random(KILL_SEED)
    total = sum(name.endswith(".bin") for name in uninterrupted)
    killed = 0
    for shards in sorted(rng.sample(range(total - 2), 8)):
        process = start(corpus, folder)
        wait_for_shards(process, folder, shards)
        time.sleep(rng.random() * 0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert_resumable(folder)
    assert killed >= 6, f"KILL_SEED={KILL_SEED}: too many runs ended before they were killed"
    finish(corpus, folder)
    assert content(folder) == uninterrupted, f"KILL_SEED={KILL_SEED}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_p8_a_signal_stops_with_exit_75_and_the_same_command_goes_on(
    corpus, uninterrupted, tmp_path, number
):
    folder = tmp_path / "made"
    process = start(corpus, folder)
    wait_for_shards(process, folder, 5)
    process.send_signal(number)
    process.send_signal(number)  # as a scheduler and torchrun do
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert f"error[STOPPED]: {number.name} received; kept: " in errors
    assert "Traceback" not in errors
    assert not (folder / "manifest.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*.bin")}
    finish(corpus, folder)
    assert content(folder) == uninterrupted
    rewritten = [p.name for p, t in kept.items() if p.stat().st_mtime_ns != t]
    assert len(rewritten) <= 1  # the one that the journal did not name yet


def test_p8_a_disk_that_is_full_is_exit_5_and_the_same_command_goes_on(
    corpus, uninterrupted, tmp_path
):
    """A limit on the size of files stops the journal, which grows, in the middle of the work."""
    folder = tmp_path / "made"
    process = start(corpus, folder, most_bytes=4500)
    _, errors = process.communicate()
    assert process.returncode == 5, errors
    assert "error[STORAGE]: cannot write" in errors
    assert "Traceback" not in errors
    shards = len(list(folder.glob("*.bin")))
    assert 3 < shards < sum(name.endswith(".bin") for name in uninterrupted)
    finish(corpus, folder)
    assert content(folder) == uninterrupted


def count_calls(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> int:
    """How often `act` renames a file into place."""
    calls = 0
    replace = os.replace

    def counting(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counting)
        act()
    return calls


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int, after: bool) -> None:
    replace = os.replace

    def killing(*arguments: object) -> None:
        nonlocal call
        call -= 1
        if call >= 0:
            replace(*arguments)
        elif after and call == -1:
            replace(*arguments)
            raise Killed
        else:
            raise Killed

    monkeypatch.setattr(os, "replace", killing)


def killed_at_every_rename(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: FilesSource,
    options: PrepareOptions,
    after: bool,
) -> dict[str, bytes]:
    """Prepare undisturbed, and once for each rename of that, killed at it and gone on with: all
    leave the same files, which are returned."""
    straight = folder / "straight" / "made"
    calls = count_calls(monkeypatch, lambda: prepare(source, straight, options, workers=1))
    assert calls > 10
    expected = content(straight)
    for call in range(calls):
        made = folder / str(call) / "made"
        with monkeypatch.context() as patch:
            kill_at(patch, call, after)
            with pytest.raises(Killed):
                prepare(source, made, options, workers=1)
        prepare(source, made, options, workers=1)
        assert content(made) == expected, call
    return expected


@pytest.mark.parametrize(("limit_tokens", "shard_tokens"), [(None, 9000), (9000, 2500)])
@pytest.mark.parametrize("after", [False, True])
def test_p8_a_kill_at_every_rename_changes_nothing(
    tmp_path, monkeypatch, after, limit_tokens, shard_tokens
):
    """A limit is the hard case: what was counted before the kill must be counted again."""
    source = FilesSource([str(write_corpus(tmp_path / "text", 40))])
    options = PrepareOptions("bytes", 0.3, limit_tokens, shard_tokens)
    killed_at_every_rename(tmp_path, monkeypatch, source, options, after)


@pytest.mark.parametrize("after", [False, True])
def test_p8_a_kill_at_every_rename_leaves_nothing_out_twice(tmp_path, monkeypatch, after):
    """With copies, near duplicates and small chunks: all that a restart must know of the past."""
    for module, size in (("files.LINES_BYTES", 900), ("BATCH_CHARACTERS", 300)):
        monkeypatch.setattr(f"outpace.data.sources.{module}", size)
    rng = random.Random(3)
    texts = [" ".join(f"w{rng.randrange(90)}" for _ in range(40)) for _ in range(30)]
    texts += [t + " end" for t in texts[::3]] + texts[::4] + [""]
    rng.shuffle(texts)
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
    (tmp_path / "x.jsonl").write_text(lines + "\n" + json.dumps({"text": "\ud800"}))
    source = FilesSource([str(tmp_path / "x.jsonl")], Reading(errors="replace"))
    options = PrepareOptions("bytes", 0.3, shard_tokens=900, near_duplicates=True)
    expected = killed_at_every_rename(tmp_path, monkeypatch, source, options, after)
    counted = json.loads(expected["manifest.json"])
    assert counted["documents"]["near_duplicates_left_out"] >= 5
    assert counted["documents"]["exact_copies_left_out"] >= 5
    assert counted["source"]["normalisation"]["documents_with_bad_characters_replaced"] == 1
    assert expected["removed.jsonl"].count(b"\n") == counted["removed"]["lines"]


def test_p8_a_limit_means_the_same_wherever_the_run_was_killed(tmp_path, monkeypatch):
    """Small validation documents among big training documents: the last one of these overshoots the
    limit by more than all validation documents are long."""
    (tmp_path / "text").mkdir()
    for n in range(60):
        text = (
            f"{n}" if xxhash.xxh3_64_digest(f"{n}".encode()) < b"\x66" else f"{n}" + " long" * 400
        )
        (tmp_path / "text" / f"{n:02d}.txt").write_text(text)
    source = FilesSource([str(tmp_path / "text")])
    for limit in range(6_500, 14_000, 1500):
        options = PrepareOptions("bytes", 0.4, limit, 100_000)
        straight = tmp_path / f"straight-{limit}" / "made"
        prepare(source, straight, options, workers=1)
        folder = tmp_path / f"killed-{limit}" / "made"
        with monkeypatch.context() as patch:
            kill_at(patch, 4, after=False)  # training is on disk and named, validation is not
            with pytest.raises(Killed):
                prepare(source, folder, options, workers=1)
        assert [p.name for p in folder.glob("*.bin")] == ["train_000000.bin"]
        prepare(source, folder, options, workers=1)
        assert content(folder) == content(straight), limit
        assert open_dataset(folder).manifest["documents"]["val"] > 1


@pytest.fixture
def half_done(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a run was killed half way."""
    folder = tmp_path / "made"
    with monkeypatch.context() as patch:
        kill_at(patch, 31, after=False)
        with pytest.raises(Killed):
            prepare(FilesSource([str(corpus)]), folder, OPTIONS, workers=1)
    assert len(list(folder.glob("*.bin"))) == 10
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "\0\0\0", "[" * 100_000,
        '{"spec": SPEC}', '{"spec": SPEC, "shards": 3}',
        '{"spec": SPEC, "shards": [3]}', '{"spec": SPEC, "shards": [{"file": "x.bin"}]}',
        '{"spec": SPEC, "shards": [{"file": "../x", "split": "train", "tokens": 1, "documents": 1, '
        '"sha256": "", "lengths_sha256": "", "end_document": 1}]}',
    ],
)  # fmt: skip
def test_p8_a_damaged_journal_is_a_data_error_and_nothing_changes(corpus, half_done, text):
    journal = half_done / ".prepare.json"
    spec = json.loads(journal.read_text())["spec"]
    journal.write_text(text.replace("SPEC", json.dumps(spec)))
    before = content(half_done)
    with pytest.raises(DataError) as caught:
        prepare(FilesSource([str(corpus)]), half_done, OPTIONS)
    assert "delete" in caught.value.do
    assert content(half_done) == before


def test_p8_what_a_killed_process_left_half_written_is_cleared_away(
    corpus, uninterrupted, half_done
):
    for name in ("..prepare.json.tmp-123", ".manifest.json.tmp-123", "train_000010.bin.tmp"):
        (half_done / name).touch()
    (half_done / "notes.tmp").write_text("mine")
    prepare(FilesSource([str(corpus)]), half_done, OPTIONS)
    assert content(half_done) == uninterrupted | {"notes.tmp": b"mine"}


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "lengths"])
def test_p8_a_shard_damaged_before_the_restart_is_written_again(
    corpus, uninterrupted, half_done, damage
):
    path = half_done / ("train_000003.len" if damage == "lengths" else "train_000003.bin")
    data = bytearray(path.read_bytes())
    match damage:
        case "short":
            path.write_bytes(data[:-2])
        case "missing":
            path.unlink()
        case _:
            data[-2] ^= 1
            path.write_bytes(data)
    prepare(FilesSource([str(corpus)]), half_done, OPTIONS)
    assert content(half_done) == uninterrupted
    verify_dataset(open_dataset(half_done))


def test_p8_a_finished_dataset_that_was_damaged_is_not_called_finished(corpus, tmp_path):
    folder = tmp_path / "made"
    prepare(FilesSource([str(corpus)]), folder, OPTIONS)
    os.truncate(folder / "train_000003.bin", 2000)
    with pytest.raises(DataError, match=r"train_000003\.bin") as caught:
        prepare(FilesSource([str(corpus)]), folder, OPTIONS)
    assert "delete" in caught.value.do


def test_p8_an_error_of_the_disk_while_writing_leaves_nothing_half_named(
    corpus, uninterrupted, tmp_path, monkeypatch
):
    folder = tmp_path / "made"
    fsync, calls = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StorageError, match="Input/output error"):
            prepare(FilesSource([str(corpus)]), folder, OPTIONS)
    journal = json.loads((folder / ".prepare.json").read_text())
    goes_on = {f".{name}.tmp" for name, size in journal["sizes"].items() if size}
    goes_on |= {f"{split}_" for split, part in journal["parts"].items() if part["documents"]}
    half = [name for name in content(folder) if "tmp" in name]
    assert not [name for name in half if not name.startswith(tuple(goes_on))]
    assert_resumable(folder)
    prepare(FilesSource([str(corpus)]), folder, OPTIONS)
    assert content(folder) == uninterrupted


def test_p8_what_gets_its_name_is_on_the_disk_by_then(corpus, tmp_path, monkeypatch):
    """Power may go at any moment: each file is synced whole before it is renamed, the names of the
    shards before the manifest speaks of them, and what the journal counts before the journal."""
    folder, on_disk, names_on_disk = tmp_path / "made", {}, set()
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            names_on_disk.update(p.name for p in folder.iterdir())
        else:
            for path in folder.iterdir():
                if path.stat().st_ino == status.st_ino:
                    on_disk[status.st_ino] = path.read_bytes()
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        data = Path(source).read_bytes()
        assert on_disk.get(Path(source).stat().st_ino) == data, f"{target} may be empty"
        record = json.loads(data) if target.suffix == ".json" else {}
        shards = [shard["file"] for shard in record.get("shards", [])]
        assert names_on_disk >= {*shards, *(Path(name).stem + ".len" for name in shards)}
        counted = {GROWING[name]: size for name, size in record.get("sizes", {}).items()}
        for path in folder.glob("*.bin.tmp"):
            part = record.get("parts", {}).get(path.name.split("_")[0], {"documents": 0})
            if part["documents"]:
                counted[path.name] = 1024 + 2 * part["tokens"]
                counted[path.name.replace(".bin", ".len")] = 4 * part["documents"]
        for name, size in counted.items():
            if size:
                assert len(on_disk[(folder / name).stat().st_ino]) >= size, f"{name} may be short"
        replace(source, target)
        renames.append(target.name)

    renames: list[str] = []
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    prepare(FilesSource([str(corpus)]), folder, OPTIONS)
    assert renames[-1] == "manifest.json" and renames.count(".prepare.json") > 3
    assert len([name for name in renames if name.endswith(".bin")]) > 3


def prepare_flags(corpus: Path, folder: Path | str) -> list[str]:
    return [
        "prepare", "files", "--input", str(corpus), "--output", str(folder),
        "--tokenizer", OPTIONS.tokenizer, "--val_fraction", str(OPTIONS.val_fraction),
        "--shard_tokens", str(OPTIONS.shard_tokens),
    ]  # fmt: skip


def test_p8_of_two_at_once_the_second_is_refused_and_the_first_undisturbed(
    corpus, uninterrupted, tmp_path
):
    folder = tmp_path / "made"
    slow = harness.Fault("replace", "sleep:2", at=5, path="train_")
    first = harness.start(*prepare_flags(corpus, folder), cwd=tmp_path, faults=[slow])
    first.until((folder / "train_000002.bin").exists)
    second = harness.call(*prepare_flags(corpus, folder), cwd=tmp_path)
    assert second.code == 8, second.err
    assert f"error[OUTPUT-IN-USE]: another process is preparing {folder}" in second.err
    assert first.wait() == 0, first.err
    assert content(folder) == uninterrupted


def test_p8_a_finished_dataset_may_lie_on_a_disk_that_is_read_only(corpus, uninterrupted, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "none") as disk:
        flags = prepare_flags(corpus, disk / "made")
        assert harness.call(*flags, cwd=tmp_path).code == 0
        (disk / "made/.lock").unlink()
        mount("-o", "remount,ro", disk)
        again = harness.call(*flags, cwd=tmp_path)
        assert again.code == 0, again.err
        assert content(disk / "made") == uninterrupted
        other = harness.call(*flags, "--val_fraction", "0.5", cwd=tmp_path)
        assert other.code == 3 and "error[OTHER-DATASET]" in other.err, other.err
        new = harness.call(*prepare_flags(corpus, disk / "new"), cwd=tmp_path)
        assert new.code == 5 and os.strerror(errno.EROFS) in new.err, new.err


def test_p8_a_file_system_that_is_full_is_exit_5_and_the_same_command_goes_on(
    corpus, uninterrupted, tmp_path
):
    """A real one, of 80 kB, that is given more room afterwards."""
    (tmp_path / "small").mkdir()
    command = " ".join([sys.executable, "-m", "outpace", *prepare_flags(corpus, "small/made")])
    script = f"""
        mount -t tmpfs -o size=80k none small || exit 77
        {command}; echo "exit $?"; cp -r small/made full
        mount -o remount,size=10m small
        {command}; echo "exit $?"; cp -r small/made .
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == [
        "exit 5", "exit 0"
    ], done.stderr  # fmt: skip
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    left = {p.name for p in (tmp_path / "full").iterdir()}
    parts = Journal.read(tmp_path / "full").parts
    begun = {split for split, mark in parts.items() if mark.documents}  # to go on in the middle of
    assert {x.split("_")[0] for x in left if x.startswith(SPLITS) and x.endswith(".tmp")} == begun
    assert 0 < sum(x.endswith(".bin") for x in left) < len(uninterrupted) // 2
    assert content(tmp_path / "made") == uninterrupted
