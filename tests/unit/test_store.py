"""The commit protocol: what is written is whole, what is damaged is found, what is old goes."""

import errno
import json
import os
import random
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
        for name, tensor in expected.items():
            assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    loaded = store.load(path)
    assert loaded.step == 7 and loaded.state["text"] == "ünïcode"
    assert torch.equal(
        loaded.model(torch.device("cpu"))["a.weight"], tensors(7)[store.MODEL]["a.weight"]
    )


def test_every_flipped_bit_is_found(tmp_path):
    path = save(tmp_path, 1)
    rng = random.Random(0)
    for file in sorted(path.iterdir()):
        original = file.read_bytes()
        for _ in range(75):
            damaged = bytearray(original)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            assert store.fault(path), f"{file.name} flipped unseen"
        file.write_bytes(original)
        assert store.fault(path) is None


@pytest.mark.parametrize("how", ["truncated", "emptied", "missing", "extra", "swapped", "huge"])
def test_every_damage_of_the_files_is_found(tmp_path, how):
    path, other = save(tmp_path, 1), save(tmp_path, 2)
    model = path / store.MODEL
    if how == "truncated":
        os.truncate(model, model.stat().st_size - 1)
    elif how == "emptied":
        model.write_bytes(b"")
    elif how == "missing":
        model.unlink()
    elif how == "extra":
        (path / "note").touch()
    elif how == "swapped":
        model.write_bytes((other / store.MODEL).read_bytes())
    else:
        (path / store.MANIFEST).write_bytes(b" " * 2_000_000)
    assert store.fault(path)
    with pytest.raises(CheckpointError) as caught:
        store.load(path)
    assert caught.value.exit_code == 4


def test_a_bad_newest_is_set_aside_aloud_and_the_next_good_is_used(tmp_path, capsys):
    save(tmp_path, 1), save(tmp_path, 2)
    bad = save(tmp_path, 3)
    os.truncate(bad / store.MODEL, 10)
    found = store.latest(tmp_path)
    assert found is not None and found.step == 2
    assert "CKPT-BAD" in capsys.readouterr().err
    assert [p.name for p in tmp_path.glob("bad-step-00000003-*")], "kept as evidence"


def test_when_none_is_good_it_stops_and_touches_nothing(tmp_path):
    for step in (1, 2):
        os.truncate(save(tmp_path, step) / store.STATE, 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="none of the 2"):
        store.latest(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_checkpoint_is_none_and_foreign_names_are_ignored(tmp_path):
    assert store.latest(tmp_path) is None and store.latest(tmp_path / "absent") is None
    for name in ("step-999-backup", "step-00000010 (copy)", "astep-00000011", "step-5"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000012").write_text("a file")
    assert store.latest(tmp_path) is None


def test_links_are_not_followed(tmp_path):
    outside = save(tmp_path / "elsewhere", 9)
    folder = tmp_path / "run"
    save(folder, 1), save(folder, 2)
    (folder / "step-00000009").symlink_to(outside)
    (folder / ".tmp-3-deadbeef").symlink_to(outside)
    store.sweep(folder)
    store.prune(folder, keep=2)
    assert store.latest(folder).step == 2 and store.fault(outside) is None


def test_prune_counts_only_good_ones(tmp_path):
    """Two good, three damaged newer ones, keep 3: nothing may go."""
    for step in range(1, 6):
        save(tmp_path, step)
    for step in (3, 4, 5):
        (tmp_path / f"step-{step:08d}" / store.MODEL).unlink()
    store.prune(tmp_path, keep=3)
    assert len(store.paths(tmp_path)) == 5
    for step in (6, 7, 8):
        save(tmp_path, step)
    store.prune(tmp_path, keep=3)
    assert [p.name[-1] for p in store.paths(tmp_path)] == ["6", "7", "8"]


def test_a_step_is_never_overwritten(tmp_path):
    path = save(tmp_path, 1)
    before = (path / store.MANIFEST).read_bytes()
    with pytest.raises(CheckpointError):
        save(tmp_path, 1)
    assert (path / store.MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_disk_leaves_the_older_one_and_no_remains(tmp_path, monkeypatch, call, number):
    save(tmp_path, 1)

    def fails(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.os, call, fails)
    with pytest.raises(StorageError) as caught:
        save(tmp_path, 2)
    monkeypatch.undo()
    assert caught.value.exit_code == 5 and os.strerror(number) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert store.latest(tmp_path).step == 1


def test_a_really_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """A 1 MiB tmpfs of our own, in a mount namespace that ends with the child."""
    import subprocess
    import sys

    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom outpace.checkpoint import store\n"
        "from outpace.core.errors import StorageError\nroot = Path(sys.argv[1])\n"
        "w = {store.MODEL: {'w': torch.zeros(100_000)}}\n"
        "store.save(root, 1, w, {})\nstore.save(root, 2, w, {})\n"
        "try:\n    store.save(root, 3, w, {})\nexcept StorageError as e:\n    print('refused', e)\n"
        "print(store.latest(root).step, sorted(p.name for p in root.iterdir()))\n"
    )
    command = f'mount -t tmpfs -o size=1M none "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, sys.executable, script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.returncode == 0, done.stderr
    assert "refused error[STORAGE]" in done.stdout and "No space left" in done.stdout
    assert "2 ['step-00000001', 'step-00000002']" in done.stdout


def test_sweep_removes_our_remains_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    ours = [".tmp-5-0123abcd", ".del-123-89abcdef"]
    theirs = [".tmp-mine", "tmp-5-0123abcd", ".tmp-5-0123abcd.bak"]
    for name in ours + theirs:
        (tmp_path / name).mkdir()
    store.sweep(tmp_path)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"step-00000001", *theirs}


def test_the_order_of_durability(tmp_path, monkeypatch):
    """Each file is synced before the manifest is, that before the folder, that before the rename,
    and the parent after it."""
    calls = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd):
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{fd}")).name))
        real_fsync(fd)

    def rename(a, b):
        calls.append(("rename", Path(b).name))
        real_rename(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save(tmp_path, 4)
    names = [n if not n.startswith(".tmp-") else "temporary" for _, n in calls]
    assert names == [
        store.MODEL, store.OPTIMIZER, store.STATE, store.MANIFEST, "temporary",
        "step-00000004", tmp_path.name,
    ]  # fmt: skip


def test_the_weights_hash_tells_weights_apart_and_nothing_else():
    a = {"x": torch.ones(2, 3), "y": torch.zeros(1)}
    assert store.weights_sha256(a) == store.weights_sha256(dict(reversed(a.items())))
    assert store.weights_sha256(a) == store.weights_sha256({k: v.clone() for k, v in a.items()})
    assert store.weights_sha256(a) != store.weights_sha256(a | {"x": torch.ones(3, 2)})
    assert store.weights_sha256(a) != store.weights_sha256(a | {"y": torch.zeros(1) + 1e-30})


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 2)
    path = save(tmp_path, 1)
    monkeypatch.undo()
    assert json.loads((path / store.MANIFEST).read_text())["format"] == 2
    assert "format 2" in (store.fault(path) or "")
