"""The commit protocol: what is written is whole, what is damaged is found, what is old goes."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outpace.checkpoint import store
from outpace.core.errors import CheckpointError


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
        for name, tensor in expected.items():
            assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    loaded = store.load(path)
    assert loaded.step == 7 and loaded.state["text"] == "ünïcode"
    assert torch.equal(
        loaded.model(torch.device("cpu"))["a.weight"], tensors(7)[store.MODEL]["a.weight"]
    )


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
