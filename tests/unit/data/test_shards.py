"""Shards on disk, read back by their definition; damaged shards and hostile manifests."""

import json
import os
import resource
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import files

from outpace.core.errors import DataError
from outpace.data.shards import Dataset, TokenStream, open_dataset, verify_dataset

from .helpers import (
    prepared,
    read_documents,
    read_lengths,
    read_shard,
    write_dataset,
    write_manifest,
)


def read_all(dataset: Dataset) -> np.ndarray:
    stream = dataset.stream("train")
    out = np.empty(len(stream), np.uint16)
    stream.read(0, out)
    return out


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Path:
    """A dataset that may be damaged."""
    return Path(shutil.copytree(dataset.folder, tmp_path / "copy"))


def test_a_shard_is_the_header_and_the_tokens_and_nothing_else(folder):
    write_dataset(folder, [[256, 1, 255]])
    data = (folder / "train_000000.bin").read_bytes()
    assert data[:12] == struct.pack("<3i", 20240520, 1, 3)
    assert data[12:1024] == bytes(1012)
    assert data[1024:] == struct.pack("<3H", 256, 1, 255)
    assert (folder / "train_000000.len").read_bytes() == struct.pack("<I", 3)
    assert sorted(files(folder)) == ["manifest.json", "train_000000.bin", "train_000000.len"]


def test_shards_hold_whole_documents_up_to_their_size(dataset, texts):
    shards = sorted(dataset.folder.glob("train_*.bin"))
    assert len(shards) > 5
    for path in shards:
        lengths = read_lengths(path.with_suffix(".len"))
        assert sum(lengths) == len(read_shard(path)) <= 3000
        following = path.with_name(f"train_{int(path.stem[-6:]) + 1:06d}.len")
        if following.exists():  # the next document did not fit
            assert sum(lengths) + read_lengths(following)[0] > 3000
    documents = read_documents(dataset.folder, "train", 256)
    assert len(documents) + len(read_documents(dataset.folder, "val", 256)) == len(texts)


def test_documents_that_fill_a_shard_exactly_stay_in_it(folder):
    prepared(folder, ["abc", "def", "ghi"], val_fraction=0, shard_tokens=8)
    assert [len(read_shard(p)) for p in sorted(folder.glob("*.bin"))] == [8, 4]


def test_the_manifest_counts_what_the_files_hold(dataset):
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    for split in ("train", "val"):
        documents = read_documents(dataset.folder, split, 256)
        assert manifest["documents"][split] == len(documents)
        assert manifest["tokens"][split] == sum(1 + len(d) for d in documents)
        assert dataset.tokens(split) == len(dataset.stream(split)) == manifest["tokens"][split]
    hashes = files(dataset.folder)
    for shard in manifest["shards"]:
        assert hashes.pop(shard["file"]) == shard["sha256"]
        assert hashes.pop(shard["file"].replace(".bin", ".len")) == shard["lengths_sha256"]
    assert list(hashes) == ["manifest.json"]


def test_reading_over_borders_equals_the_concatenation(dataset):
    whole = [t for path in sorted(dataset.folder.glob("train_*.bin")) for t in read_shard(path)]
    assert read_all(dataset).tolist() == whole
    stream = dataset.stream("train")
    rng = np.random.default_rng(0)
    for _ in range(200):
        start, end = sorted(rng.integers(0, len(whole) + 1, 2))
        out = np.empty(end - start, np.uint16)
        stream.read(start, out)
        assert out.tolist() == whole[start:end]


def test_threads_that_share_a_stream_each_read_what_they_asked_for(dataset):
    stream = dataset.stream("train")
    whole = np.empty(len(stream), np.uint16)
    stream.read(0, whole)

    def wrong(seed: int) -> int:
        rng, out, bad = np.random.default_rng(seed), np.empty(50, np.uint16), 0
        for start in rng.integers(0, len(stream) - len(out), 3000).tolist():
            stream.read(start, out)
            bad += not np.array_equal(out, whole[start : start + len(out)])
        return bad

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(wrong, range(3))) == [0, 0, 0]


def test_tiny_shards_are_read_over_many_borders(folder):
    write_dataset(folder, [[256], [256, 1], [256, 2, 3], [256]])
    out = np.empty(5, np.uint16)
    open_dataset(folder).stream("train").read(1, out)
    assert out.tolist() == [256, 1, 256, 2, 3]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_hundreds_of_shards_need_few_open_files(folder):
    write_dataset(folder, [[256, n] for n in range(200)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = open_files()
    stream = open_dataset(folder).stream("train")
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 80, hard))
    try:
        for at in np.random.default_rng(0).permutation(200):
            out = np.empty(2, np.uint16)
            stream.read(2 * int(at), out)
            assert out.tolist() == [256, at]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_files() > used
    stream.close()
    assert open_files() == used


@pytest.mark.parametrize("damage", ["missing", "folder", "loop"])
def test_a_shard_that_is_no_file_is_named(copy, damage):
    path = copy / "train_000003.bin"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "loop":
        path.symlink_to(path.name)
    with pytest.raises(DataError, match=r"train_000003\.bin"):
        open_dataset(copy)
    (copy / "train_000004.bin").unlink()
    with pytest.raises(DataError, match=r"train_000003\.bin"):
        TokenStream(copy, ["train_000000.bin", "train_000003.bin"], 257)


@pytest.mark.parametrize("vocab_size", [50257, 257])
@pytest.mark.parametrize("beyond", [0, 46])
def test_a_token_beyond_the_vocabulary_is_named_with_its_place(folder, vocab_size, beyond):
    """50257 to 50303 fit a padded embedding, and would be trained on in silence."""
    shards = [[1] * 10, [1, 2, 3, vocab_size + beyond, 5], [vocab_size - 1] * 3]
    write_dataset(folder, shards, vocab_size)
    stream = open_dataset(folder).stream("train")
    stream.read(0, np.empty(13, np.uint16))
    stream.read(14, np.empty(4, np.uint16))
    with pytest.raises(DataError, match=rf"train_000001\.bin: token 3 is {vocab_size + beyond}"):
        stream.read(5, np.empty(12, np.uint16))


def test_a_shard_cut_while_it_is_read_is_an_error_not_a_death(copy):
    stream = open_dataset(copy).stream("train")
    out = np.empty(100, np.uint16)
    stream.read(0, out)
    os.truncate(copy / "train_000000.bin", 1024 + 100)
    stream.read(0, out[:50])
    with pytest.raises(DataError, match=r"train_000000\.bin.*shorter"):
        stream.read(0, out)


def test_a_deleted_shard_is_read_on_through_the_open_file(copy):
    stream = open_dataset(copy).stream("train")
    before, after = np.empty(100, np.uint16), np.empty(100, np.uint16)
    stream.read(0, before)
    (copy / "train_000000.bin").unlink()
    stream.read(0, after)
    assert np.array_equal(before, after)
    stream.close()
    with pytest.raises(DataError, match=r"train_000000\.bin"):
        stream.read(0, after)


@pytest.mark.parametrize("other", ["train_000001.bin", "train_000001.len"])
def test_a_shard_replaced_while_it_is_in_use_is_noticed(copy, other):
    stream = open_dataset(copy).stream("train")
    shutil.copy(copy / other, copy / "new")
    (copy / "new").replace(copy / "train_000000.bin")
    with pytest.raises(DataError, match=r"train_000000\.bin"):
        stream.read(0, np.empty(10, np.uint16))


@pytest.mark.parametrize("damage", ["missing", "swapped"])
def test_missing_and_swapped_files_are_found_by_verify(copy, damage):
    dataset = open_dataset(copy)
    path = copy / "train_000000.len"
    if damage == "missing":
        path.unlink()
    else:
        shutil.copy(copy / "train_000001.len", path)
    with pytest.raises(DataError, match=r"train_000000\.len"):
        verify_dataset(dataset)


def changed(copy: Path, **change: object) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"{}",
        b"{",
        b"\xff\xfe{}",
        b"\0" * 100,
        b"[" * 100_000,
        b'{"format": 1, "shards": []}',
        b'{"format": 1, "shards": {"a": 1}}',
        b'{"format": 1, "shards": [[]]}',
        b'{"format": 1, "shards": [null]}',
    ],
)
def test_a_manifest_that_is_none_is_a_data_error(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": None},
        {"tokenizer": None},
        {"tokenizer": []},
        {"tokenizer": {"name": "bytes", "vocab_size": "many", "vocab_sha256": ""}},
        {"tokenizer": {"name": "bytes", "vocab_size": 1e999, "vocab_sha256": ""}},
        {"tokenizer": {"name": "bytes", "vocab_size": 257}},
        {"unigram_entropy": None},
        {"unigram_entropy": {}},
        {"shards": 3},
    ],
)
def test_a_manifest_with_wrong_values_is_a_data_error(copy, change):
    changed(copy, **change)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(copy)


@pytest.mark.parametrize(
    "key", ["file", "split", "tokens", "documents", "sha256", "lengths_sha256"]
)
@pytest.mark.parametrize("value", [None, [], {}, 1.5, True, "missing"])
def test_a_shard_entry_with_a_wrong_value_is_a_data_error(copy, key, value):
    entries = json.loads((copy / "manifest.json").read_text())["shards"]
    if value == "missing":
        del entries[1][key]
    else:
        entries[1][key] = value
    changed(copy, shards=entries)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(copy)


@pytest.mark.parametrize(
    "name",
    ["../secret.bin", "/etc/hostname", "..", ".", "", "sub/x.bin", "a\0b.bin", ".bin", "x.txt",
     "train_000000.bin/../../secret.bin", "..\\secret.bin", "x.bin\n", "a" * 5000 + ".bin"],
)  # fmt: skip
def test_a_shard_name_cannot_leave_the_folder(copy, name):
    shutil.copy(copy / "train_000001.bin", copy.parent / "secret.bin")
    entries = json.loads((copy / "manifest.json").read_text())["shards"]
    entries[1]["file"] = name
    changed(copy, shards=entries)
    with pytest.raises(DataError):
        open_dataset(copy)


def test_a_folder_without_a_manifest_is_answered_with_the_command(tmp_path):
    with pytest.raises(DataError, match="not a prepared dataset") as caught:
        open_dataset(tmp_path)
    assert "outpace prepare" in caught.value.do


def test_the_fingerprint_is_of_the_tokens_and_not_of_the_name(dataset, copy):
    assert open_dataset(copy).fingerprint == dataset.fingerprint
    changed(copy, name="other", source={})
    assert open_dataset(copy).fingerprint == dataset.fingerprint
    entries = json.loads((copy / "manifest.json").read_text())["shards"]
    changed(copy, shards=[entries[1], entries[0], *entries[2:]])
    assert open_dataset(copy).fingerprint != dataset.fingerprint


def test_a_dataset_of_no_shards_has_no_tokens(folder):
    folder.mkdir()
    write_manifest(folder, [], 257)
    assert len(open_dataset(folder).stream("train")) == 0
