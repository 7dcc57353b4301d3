"""The commit protocol: what is written is whole, what is damaged is found, what is old goes."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outpace.checkpoint import store
from outpace.core.errors import CheckpointError, StorageError


def tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        store.MODEL: {
            "a.weight": torch.randn(5, 7, generator=g),
            "b": torch.randn(3, generator=g).bfloat16(),
            "transposed": torch.randn(4, 6, generator=g).t(),
        },
        store.OPTIMIZER: {
            "a.weight::step": torch.tensor(3.0),
            "i": torch.arange(4),
            "empty": torch.empty(0, 2),
        },
    }


def save(folder: Path, step: int) -> Path:
    return store.save(folder, step, tensors(step), {"step": step, "text": "ünïcode"})


def test_what_is_saved_is_what_safetensors_reads(tmp_path):
    path = save(tmp_path, 7)
    assert path.name == "step-00000007" and store.fault(path) is None
    for file, expected in tensors(7).items():
        read = load_file(path / file)
        assert read.keys() == expected.keys()
        header = int.from_bytes((path / file).read_bytes()[:8], "little")
        assert header % 8 == 0, "the tensors are not aligned"
        for name, tensor in expected.items():
            assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    loaded = store.load(path)
    assert loaded.step == 7 and loaded.state["text"] == "ünïcode"
    assert torch.equal(loaded.model()["a.weight"], tensors(7)[store.MODEL]["a.weight"])


def test_a_bad_newest_is_set_aside_aloud_and_the_next_good_is_used(tmp_path, capsys):
    save(tmp_path, 1), save(tmp_path, 2)
    bad = save(tmp_path, 3)
    os.truncate(bad / store.MODEL, 10)
    found = store.latest(tmp_path)
    assert found is not None and found.step == 2
    assert "CKPT-BAD" in capsys.readouterr().err
    assert [p.name for p in tmp_path.glob("bad-step-00000003-*")], "kept as evidence"


def test_no_checkpoint_is_none_and_foreign_names_are_ignored(tmp_path):
    assert store.latest(tmp_path) is None and store.latest(tmp_path / "absent") is None
    for name in ("step-999-backup", "step-00000010 (copy)", "astep-00000011", "step-5"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000012").write_text("a file")
    assert store.latest(tmp_path) is None


def test_a_step_is_never_overwritten(tmp_path):
    path = save(tmp_path, 1)
    before = (path / store.MANIFEST).read_bytes()
    with pytest.raises(CheckpointError):
        save(tmp_path, 1)
    assert (path / store.MANIFEST).read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {path.name, store.LATEST}


def test_sweep_removes_our_remains_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    ours = [".tmp-5-0123abcd", ".del-123-89abcdef", ".LATEST.tmp-1-2", ".STATUS.json.tmp-1-2"]
    ours += [".plan.json.tmp-12-345", ".config.toml.tmp-1-2", ".metrics.jsonl.tmp-1-2"]
    theirs = [".tmp-mine", "tmp-5-0123abcd", ".tmp-5-0123abcd.bak", ".notes.txt.tmp-1-2"]
    for name in ours + theirs:
        (tmp_path / name).mkdir()
    store.sweep(tmp_path)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"step-00000001", store.LATEST, *theirs}


def test_the_weights_hash_tells_weights_apart_and_nothing_else():
    a = {"x": torch.ones(2, 3), "y": torch.zeros(1)}
    assert store.weights_sha256(a) == store.weights_sha256(dict(reversed(a.items())))
    assert store.weights_sha256(a) == store.weights_sha256({k: v.clone() for k, v in a.items()})
    assert store.weights_sha256(a) != store.weights_sha256(a | {"x": torch.ones(3, 2)})
    assert store.weights_sha256(a) != store.weights_sha256(a | {"y": torch.zeros(1) + 1e-30})


@pytest.mark.parametrize("what", ["link", "dangling", "file"])
def test_what_has_the_next_ones_name_is_renamed_and_not_in_the_way(tmp_path, capsys, what):
    place = tmp_path / "step-00000002"
    if what == "file":
        place.write_text("mine")
    else:
        (tmp_path / "there").mkdir()
        place.symlink_to(tmp_path / ("there" if what == "link" else "nowhere"))
    assert store.fault(save(tmp_path, 2)) is None
    assert "is not a folder, and was renamed" in capsys.readouterr().err
    assert len(list(tmp_path.glob("bad-step-00000002-*"))) == 1


def test_what_cannot_be_read_just_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    save(tmp_path, 1), save(tmp_path, 2)

    def stale(_path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(store, "sha256_file", stale)
    with pytest.raises(StorageError, match=os.strerror(errno.ESTALE)) as caught:
        store.latest(tmp_path)
    assert caught.value.exit_code == 5
    monkeypatch.undo()
    found = store.latest(tmp_path)
    assert found is not None and found.step == 2


def test_a_reader_looks_again_when_the_run_has_deleted_what_it_reads(tmp_path, monkeypatch):
    """A checkpoint is committed and both that were listed are deleted, while the first is read."""
    save(tmp_path, 1), save(tmp_path, 2)
    real = store.fault

    def fault(path):
        if store.step_of(path) == 2:
            store.discard(tmp_path / "step-00000001")
            store.discard(path)
            save(tmp_path, 3)
        return real(path)

    monkeypatch.setattr(store, "fault", fault)
    found = store.latest(tmp_path, set_aside=False)
    assert found is not None and found.step == 3


def test_a_run_that_deletes_faster_than_it_is_read_is_told_as_that(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def gone(path):
        store.discard(path)
        save(tmp_path, store.step_of(path) + 1)
        return "gone"

    monkeypatch.setattr(store, "fault", gone)
    with pytest.raises(CheckpointError, match="faster than they are read") as caught:
        store.latest(tmp_path, set_aside=False)
    assert caught.value.name == "CKPT-GONE"


def test_what_a_sweep_will_free_is_known(tmp_path):
    save(tmp_path, 1)
    assert store.remains_bytes(tmp_path) == store.remains_bytes(tmp_path / "none") == 0
    (tmp_path / ".tmp-2-0123abcd").mkdir()
    (tmp_path / ".tmp-2-0123abcd" / "model.safetensors").write_bytes(bytes(1000))
    assert store.remains_bytes(tmp_path) == 1000
    store.sweep(tmp_path)
    assert store.remains_bytes(tmp_path) == 0
