"""Checkpoints that are damaged, mixed up, left over, of another release or poisoned."""

import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import poison
import pytest
import torch
import trials
from conftest import TINY, files, write_corpus
from harness import Fault, assert_nothing_lost, assert_tidy, call, events, rollbacks, status
from trials import command, stopped_by

from outpace.checkpoint import store
from outpace.checkpoint.retention import Retention
from outpace.cli.main import main
from outpace.core.errors import CheckpointError
from outpace.core.runfolder import RunFolder
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.sources.files import FilesSource
from outpace.train.step import Trainable

GOLDEN = Path(__file__).parent / "golden"
STEPS = 4
FILES = [store.MODEL, store.OPTIMIZER, store.STATE, store.MANIFEST]


@pytest.fixture(scope="module")
def made(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with all its checkpoints. Not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    arguments = command(tiny_dataset, folder / "run", "--keep_checkpoints", "9", steps=STEPS)
    assert call(*arguments, cwd=folder).code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def two_more(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights of a run that was two steps longer, in one go."""
    return trials.straight(tmp_path_factory.mktemp("two-more"), tiny_dataset, STEPS + 2)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    return shutil.copytree(made, tmp_path / "run")


def at(run: Path, step: int) -> Path:
    return RunFolder(run).checkpoints / store.name_of(step, 0)


def flip(path: Path, rng: random.Random) -> None:
    """One bit, anywhere."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def assert_goes_on_from_the_one_before(run: Path, dataset: Path, wanted: str) -> None:
    """Told aloud, the damaged one kept under another name, and the end is that of a run that was
    never damaged."""
    child = call(*command(dataset, run, steps=STEPS + 2), cwd=run.parent)
    assert child.code == 0, child.err
    name = at(run, STEPS).name
    warning = next(line for line in child.err.splitlines() if "[CKPT-BAD]" in line)
    assert name in warning and f"continuing from {at(run, STEPS - 1).name}" in warning
    assert [p.name for p in RunFolder(run).checkpoints.glob(f"bad-{name}-*")]
    assert events(run, "resumed")[-1]["step"] == STEPS - 1
    assert status(run)["weights_sha256"] == wanted
    assert_nothing_lost(run)


def assert_found(path: Path) -> None:
    """By all that read a checkpoint: each refuses it, and the one before is the newest."""
    assert store.fault(path), "not seen"
    with pytest.raises(CheckpointError) as caught:
        store.load(path)
    assert caught.value.exit_code == 4 and path.name in str(caught.value)
    found = store.latest(path.parent, set_aside=False)
    assert found is not None and found.step == STEPS - 1


# One checkpoint.


@pytest.mark.parametrize("file", FILES)
def test_c1_every_flipped_bit_is_found(run, file):
    """100 in each of the four files."""
    rng = random.Random(file)
    path = at(run, STEPS) / file
    whole = path.read_bytes()
    for _ in range(100):
        flip(path, rng)
        why = store.fault(at(run, STEPS))
        assert why and (file in why or file == store.MANIFEST), "flipped unseen"
        path.write_bytes(whole)
    assert store.fault(at(run, STEPS)) is None


def test_c1_a_flipped_bit_costs_one_save_and_a_warning(run, tiny_dataset, two_more):
    flip(at(run, STEPS) / store.MODEL, random.Random(1))
    line = stopped_by(call("verify", run, cwd=run.parent), 4, "CKPT-BAD")
    assert at(run, STEPS).name in line and store.MODEL in line
    assert_goes_on_from_the_one_before(run, tiny_dataset, two_more)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("length", [0, 1, "random", "one less", "one more"])
def test_c2_files_cut_short(run, file, length):
    path = at(run, STEPS) / file
    size = path.stat().st_size
    lengths = {"random": random.Random(file).randrange(2, size), "one less": size - 1,
               "one more": size + 1}  # fmt: skip
    os.truncate(path, lengths.get(length, length))
    assert_found(at(run, STEPS))


@pytest.mark.parametrize("file", [store.MODEL, store.OPTIMIZER])
def test_c3_a_page_of_zeros(run, file):
    path = at(run, STEPS) / file
    with open(path, "r+b") as f:
        f.seek(4096)
        f.write(bytes(4096))
    assert_found(at(run, STEPS))


def missing(run: Path) -> None:
    (at(run, STEPS) / store.OPTIMIZER).unlink()


def extra(run: Path) -> None:
    (at(run, STEPS) / "note.txt").write_text("mine")


def swapped(run: Path) -> None:
    shutil.copy(at(run, 1) / store.MODEL, at(run, STEPS) / store.MODEL)


def whole_swapped(run: Path) -> None:
    """Everything is that of another step, but for the name."""
    shutil.rmtree(at(run, STEPS))
    shutil.copytree(at(run, 1), at(run, STEPS))


def linked(run: Path) -> None:
    (at(run, STEPS) / store.MODEL).rename(run / "elsewhere")
    (at(run, STEPS) / store.MODEL).symlink_to(run / "elsewhere")


def a_folder(run: Path) -> None:
    (at(run, STEPS) / store.STATE).unlink()
    (at(run, STEPS) / store.STATE).mkdir()


@pytest.mark.parametrize("damage", [missing, extra, swapped, whole_swapped, linked, a_folder])
def test_c4_files_missing_added_or_of_another_checkpoint(run, damage):
    damage(run)
    assert_found(at(run, STEPS))


def test_c4_files_of_another_step_cost_one_save_and_a_warning(run, tiny_dataset, two_more):
    swapped(run)
    assert_goes_on_from_the_one_before(run, tiny_dataset, two_more)


def _twice(text: bytes) -> bytes:
    return text.replace(b'"format": 2', b'"format": 1,\n "format": 2', 1)


MANIFESTS: dict[str, Callable[[bytes], bytes]] = {
    "not JSON": lambda text: text[:-1],
    "not text": lambda text: b"\xff\xfe" + text,
    "empty": lambda text: b"",
    "a list": lambda text: b"[]",
    "a number": lambda text: b"1",
    "nested": lambda text: b"[" * 500_000,
    "another step": lambda text: text.replace(b'"step": 4', b'"step": 3', 1),
    "another size": lambda text: text.replace(b'"bytes": ', b'"bytes": 1', 1),
    "another hash of itself": lambda text: text[:-10] + b"00000000" + text[-2:],
    "a key twice": _twice,
    "spaces": lambda text: text + b" ",
    "not a number": lambda text: text.replace(b'"step": 4', b'"step": NaN', 1),
    "no files": lambda text: b'{"format": 2, "step": 4, "sha256": ""}',
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_c5_a_damaged_manifest(run, how):
    path = at(run, STEPS) / store.MANIFEST
    before = path.read_bytes()
    path.write_bytes(MANIFESTS[how](before))
    assert path.read_bytes() != before
    assert_found(at(run, STEPS))


def test_c5_a_missing_manifest_and_one_of_a_gigabyte(run):
    path = at(run, STEPS) / store.MANIFEST
    path.unlink()
    assert_found(at(run, STEPS))
    with open(path, "wb") as f:
        f.truncate(1 << 30)
    assert_found(at(run, STEPS))


@pytest.mark.parametrize(
    "name", ["../state.json", "/etc/hostname", "a/../state.json", ""], ids=ascii
)
def test_c5_a_manifest_that_names_files_elsewhere(run, name):
    """With a right hash of itself."""
    path = at(run, STEPS) / store.MANIFEST
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = manifest["files"].pop(store.STATE)
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    text = json.dumps(body, indent=1, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(text).hexdigest()
    path.write_bytes(json.dumps(manifest, indent=1, sort_keys=True).encode())
    assert_found(at(run, STEPS))


# All of them.


def test_c6_when_none_is_good_training_stops_and_touches_nothing(run, tiny_dataset):
    rng = random.Random(6)
    for step in range(1, STEPS + 1):
        flip(at(run, step) / rng.choice(FILES), rng)
    before = files(run)
    child = call(*command(tiny_dataset, run, steps=STEPS + 2), cwd=run.parent)
    line = stopped_by(child, 4, "NO-GOOD-CKPT")
    assert f"none of the {STEPS} checkpoints" in line and "kept: all of them, untouched" in line
    assert files(run) == before


def test_c6_when_all_are_gone_training_does_not_begin_anew_over_the_records(run, tiny_dataset):
    for step in range(1, STEPS + 1):
        shutil.rmtree(at(run, step))
    before = files(run)
    for _ in range(2):
        child = call(*command(tiny_dataset, run, steps=STEPS + 2), cwd=run.parent)
        line = stopped_by(child, 4, "CKPT-GONE")
        assert f"has saved {store.name_of(STEPS, 0)}" in line and "kept: its records" in line
        assert files(run) == before
    told = call("status", run, "--json", cwd=run.parent)
    assert json.loads(told.out)["resumable"] is False


def test_c7_names_of_others_are_left_alone(run, tiny_dataset, two_more):
    """Only our own remains go, and only names that are a checkpoint's are taken for one."""
    there = RunFolder(run).checkpoints
    ours = [".tmp-5-0123abcd", ".del-123-89abcdef"]
    theirs = ["step-999-backup", "step-00000010 (copy)", "step-5", "xstep-00000011", ".tmp-mine",
              "tmp-5-0123abcd", ".tmp-5-0123abcd.bak", "step-00000012-rx", "step-00000013-r0",
              "step-\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661"]  # fmt: skip
    for name in ours + theirs:
        shutil.copytree(at(run, 1), there / name)
    halves = [there / ".LATEST.tmp-12-34", run / ".report.html.tmp-12-34"]
    for half in halves:
        half.write_text("half")
    (there / "step-00000012").write_text("a file")
    before = {name: files(there / name) for name in theirs}
    child = call(*command(tiny_dataset, run, steps=STEPS + 2), cwd=run.parent)
    assert child.code == 0 and "CKPT-BAD" not in child.err, child.err
    assert status(run)["weights_sha256"] == two_more
    assert {name: files(there / name) for name in theirs} == before
    assert (there / "step-00000012").read_text() == "a file"
    assert not [path for path in [*(there / n for n in ours), *halves] if path.exists()]


def test_c7_links_are_not_followed(tmp_path):
    outside = store.save(_made(tmp_path / "elsewhere"), 9, _weights(), {})
    folder = _made(tmp_path / "run")
    for step in (1, 2):
        store.save(folder, step, _weights(), {})
    (folder / "step-00000009").symlink_to(outside)
    (folder / ".tmp-3-deadbeef").symlink_to(outside)
    store.sweep(folder)
    Retention(last=2).prune(folder, run="")
    assert store.latest(folder).step == 2 and store.fault(outside) is None


# Lineage and retention.


def test_c8_higher_steps_from_before_a_rollback_do_not_count(tiny_dataset, tmp_path):
    """Three bad batches in a row send the run back from step 15 to step 2; it is killed when the
    new lineage has one checkpoint and the old one still has its higher ones."""
    steps, bad = 20, (12, 13, 14)
    extra = ("--max_skipped_steps", "3", "--milestone_every_steps", "2")
    poisoned = {"setup": poison.loss_of_data, "args": (bad,)}
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, *extra, steps=steps)
    kill = Fault("rename", "kill-after", 2, "/.tmp-3-")
    child = call(*arguments, cwd=tmp_path, faults=[kill], **poisoned)
    assert child.code == -signal.SIGKILL, child.err
    assert rollbacks(run) == [2]
    names = [p.name for p in store.paths(RunFolder(run).checkpoints)]
    assert names[-1] == "step-00000003-r1" and "step-00000014" in names

    assert call(*arguments, cwd=tmp_path, **poisoned).code == 0
    assert events(run, "resumed")[-1]["path"] == "step-00000003-r1"
    names = [p.name for p in store.paths(RunFolder(run).checkpoints)]
    wanted = ["step-00000002", *(f"step-{s:08d}-r1" for s in (*range(4, 20, 2), 19, 20))]
    assert sorted(names) == sorted(wanted), "the new lineage, and the old one up to the rollback"

    straight = tmp_path / "straight"
    other = call(*command(tiny_dataset, straight, *extra, steps=steps), cwd=tmp_path, **poisoned)
    assert other.code == 0
    assert status(run)["weights_sha256"] == status(straight)["weights_sha256"]
    assert_tidy(run)


def test_c9_only_good_ones_are_counted(tmp_path):
    """Two good, three damaged newer ones, keep 3: nothing may go."""
    for step in range(1, 6):
        store.save(tmp_path, step, _weights(), {})
    for step in (3, 4, 5):
        (tmp_path / f"step-{step:08d}" / store.MODEL).unlink()
    Retention(last=3).prune(tmp_path, run="")
    assert len(store.paths(tmp_path)) == 5
    for step in (6, 7, 8):
        store.save(tmp_path, step, _weights(), {})
    Retention(last=3).prune(tmp_path, run="")
    assert [p.name[-1] for p in store.paths(tmp_path)] == ["6", "7", "8"]


# Other releases.


def test_c10_a_newer_format_is_refused_and_stays(run, tiny_dataset, monkeypatch):
    """Also when older ones could be read: what a newer release did is not thrown away."""
    newest = at(run, STEPS)
    state = json.loads((newest / store.STATE).read_text())
    tensors = {store.MODEL: store.load(newest).model(),
               store.OPTIMIZER: store.load(newest).optimizer()}  # fmt: skip
    monkeypatch.setattr(store, "FORMAT", 99)
    store.save(RunFolder(run).checkpoints, STEPS + 1, tensors, state)
    monkeypatch.undo()
    before = files(run)
    child = call(*command(tiny_dataset, run, steps=STEPS + 2), cwd=run.parent)
    assert "its format is 99" in stopped_by(child, 4, "CKPT-VERSION")
    for reader in (("verify",), ("sample", "--prompt", "a")):
        child = call(reader[0], at(run, STEPS + 1), *reader[1:], cwd=run.parent)
        assert child.code == 4 and "its format is 99" in child.err, child.err
    assert files(run) == before


def test_c10_format_1_loads_with_the_hash_it_was_saved_with(tmp_path):
    """A checkpoint that the release before this format wrote."""
    golden = store.load(GOLDEN / "format-1")
    weights = golden.model()
    assert golden.step == 2 and store.weights_sha256(weights) == golden.state["weights_sha256"]
    child = call("verify", "--deep", GOLDEN / "format-1", cwd=tmp_path)
    assert child.code == 0, child.err
    child = call("sample", GOLDEN / "format-1", "--prompt", "The", cwd=tmp_path)
    assert child.code == 0, child.err


@pytest.fixture
def dataset_of_format_1(tmp_path, monkeypatch):
    """The tiny dataset as it was split then, by another hash of its documents."""
    monkeypatch.setattr(
        "outpace.data.encode.digest",
        lambda data: int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"),
    )
    source = FilesSource([str(write_corpus(tmp_path / "text"))])
    prepare(source, tmp_path / "data", PrepareOptions(tokenizer="bytes", val_fraction=0.1))
    return tmp_path / "data"


def test_c10_a_run_of_format_1_read_its_data_in_another_order_and_serves_as_a_start(
    dataset_of_format_1, tmp_path
):
    """It is not gone on with as if nothing had changed; its weights are where a new run begins."""
    settings = ["--warmup_steps", "auto", "--schedule", "cosine"]
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "format-1", _made(run / "checkpoints") / "step-00000002")
    before = files(run)
    child = call(*command(dataset_of_format_1, run, *settings, steps=5), cwd=tmp_path)
    assert child.code == 4 and "error[CONFIG-CHANGED]" in child.err and "order" in child.err
    assert files(run) == before
    start = ["--init_from", str(run / "checkpoints" / "step-00000002")]
    new = tmp_path / "new"
    child = call(*command(dataset_of_format_1, new, *settings, *start, steps=3), cwd=tmp_path)
    assert child.code == 0, child.err
    newest = store.load(store.paths(new / "checkpoints")[-1])
    assert newest.step == 3 and newest.state["format"] == store.FORMAT


# Pointers.


def dangling(hint: Path, _outside: Path) -> None:
    hint.write_text("step-00000099\n")


def to_an_older(hint: Path, _outside: Path) -> None:
    hint.write_text("step-00000001\n")


def upwards(hint: Path, outside: Path) -> None:
    hint.write_text(f"../../{outside.name}\n")


def rubbish(hint: Path, _outside: Path) -> None:
    hint.write_bytes(b"\xff\0" * 1000)


def gone(hint: Path, _outside: Path) -> None:
    hint.unlink()


def link_out(hint: Path, outside: Path) -> None:
    hint.unlink()
    hint.symlink_to(outside)


def to_itself(hint: Path, _outside: Path) -> None:
    hint.unlink()
    hint.symlink_to(hint.name)


def a_folder_of_that_name(hint: Path, _outside: Path) -> None:
    hint.unlink()
    hint.mkdir()


@pytest.mark.parametrize(
    "hint",
    [dangling, to_an_older, upwards, rubbish, gone, link_out, to_itself, a_folder_of_that_name],
)
def test_c11_the_hint_is_never_trusted(run, tmp_path, hint):
    outside = tmp_path / "outside"
    outside.write_text("not yours")
    there = RunFolder(run).checkpoints
    hint(there / store.LATEST, outside)
    assert store.latest(there).step == STEPS
    store.save(there, STEPS + 1, _weights(), {})
    assert store.latest(there).step == STEPS + 1 and outside.read_text() == "not yours"
    assert not [p.name for p in there.iterdir() if p.name.startswith(".LATEST")]
    if hint is not a_folder_of_that_name:
        assert (there / store.LATEST).read_text() == f"{store.name_of(STEPS + 1, 0)}\n"


def test_c11_a_run_with_a_hint_that_leads_out_goes_on(run, tmp_path, tiny_dataset, two_more):
    outside = tmp_path / "outside"
    outside.write_text("not yours")
    link_out(RunFolder(run).checkpoints / store.LATEST, outside)
    assert call(*command(tiny_dataset, run, steps=STEPS + 2), cwd=tmp_path).code == 0
    assert status(run)["weights_sha256"] == two_more and outside.read_text() == "not yours"


# Poison.


def poisoned_weight(step: int) -> None:
    """After `step`, one weight is not a number."""
    real = poison.loop.train_step

    def wrapped(t: Trainable, *arguments: object, **options: object) -> object:
        result = real(t, *arguments, **options)
        if options["step"] == step - 1:
            with torch.no_grad():
                next(t.model.parameters()).view(-1)[7] = torch.nan
        return result

    poison.loop.train_step = wrapped


def test_c12_poisoned_weights_are_not_saved(run, tiny_dataset, two_more):
    """The same command, on a machine that does no such thing, then ends as it should."""
    arguments = command(tiny_dataset, run, steps=STEPS + 2)
    child = call(*arguments, cwd=run.parent, setup=poisoned_weight, args=(STEPS + 1,))
    line = stopped_by(child, 6, "POISONED")
    assert "wte.weight" in line and status(run)["code"] == 6
    assert status(run)["last_verified_checkpoint"] == at(run, STEPS).name
    assert_nothing_lost(run)
    assert call(*arguments, cwd=run.parent).code == 0
    assert status(run)["weights_sha256"] == two_more


def test_c12_poison_under_a_right_hash_is_found_by_verify_deep(run):
    good = store.load(at(run, STEPS))
    weights = good.model()
    weights["wte.weight"][3, 1] = torch.nan
    moments = good.optimizer()
    state = {**good.state, "step": 9, "weights_sha256": store.weights_sha256(weights)}
    tensors = {store.MODEL: weights, store.OPTIMIZER: moments}
    path = store.save(RunFolder(run).checkpoints, 9, tensors, state)
    assert store.fault(path) is None
    assert call("verify", path, cwd=run.parent).code == 0
    line = stopped_by(call("verify", "--deep", path, cwd=run.parent), 4, "CKPT-BAD")
    assert "finite" in line


def test_c12_a_shape_that_no_model_has_is_found_by_verify_deep(run):
    good = store.load(at(run, STEPS))
    shape = {**good.state["shape"], "n_head": 3}
    state = {**good.state, "step": 9, "shape": shape}
    path = store.save(RunFolder(run).checkpoints, 9, {store.MODEL: good.model()}, state)
    line = stopped_by(call("verify", "--deep", path, cwd=run.parent), 4, "CKPT-BAD")
    assert "n_head 3 does not divide" in line


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _weights() -> dict[str, dict[str, torch.Tensor]]:
    return {store.MODEL: {"w": torch.arange(12.0).reshape(3, 4)}}


def _progress(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda state: state["progress"].__setitem__(key, value)


@pytest.mark.parametrize(
    "change",
    [
        _progress("step", -5), _progress("step", 3), _progress("step", "7"), _progress("zzz", 1),
        _progress("data_shift", 10**30), _progress("pieces", 0), _progress("left_at", "abc"),
        _progress("elapsed_s", "x"),
        lambda state: state["policy"].pop("losses"),
        lambda state: state["policy"].__setitem__("losses", ["a"] * 40),
        lambda state: state.__setitem__("environment", None),
        lambda state: state.__setitem__("identity", None),
        lambda state: state.__setitem__("max_steps", "many"),
        lambda state: state.pop("scaler"),
    ],
)  # fmt: skip
def test_c5_a_state_with_right_hashes_that_no_run_has_written_is_refused(
    tiny_dataset, tmp_path, change, capsys
):
    run = tmp_path / "run"
    argv = ["train", *TINY, "--dataset", str(tiny_dataset), "--run_dir", str(run)]
    assert main([*argv, "--max_steps", "2", "--save_every_steps", "2"]) == 0
    path = run / "checkpoints" / "step-00000002"
    state = json.loads((path / store.STATE).read_text())
    change(state)
    data = store._json(state)
    (path / store.STATE).write_bytes(data)
    manifest = store.read_manifest(path)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    body["files"][store.STATE] = entry
    sealed = {**body, "sha256": hashlib.sha256(store._json(body)).hexdigest()}
    (path / store.MANIFEST).write_bytes(store._json(sealed))
    assert store.fault(path) is None, "the premise of this test"
    capsys.readouterr()
    assert main([*argv, "--max_steps", "4", "--save_every_steps", "2"]) == 4
    assert "error[CKPT-BAD]" in capsys.readouterr().err
