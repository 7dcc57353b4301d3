"""Shards of llm.c and modded-nanogpt as a dataset, as they are."""

import json
import os
import struct

import numpy as np
import pytest

from outpace.cli.main import main
from outpace.core.errors import DataError
from outpace.data.adopt import adopt, can_adopt, split_of
from outpace.data.exports import EXPORTS
from outpace.data.info import samples_of
from outpace.data.shards import open_dataset, verify_dataset
from outpace.data.token_files import recognise
from outpace.tokenizer import get_tokenizer

from .test_token_files import END, llmc

STREAM = [END, 1, 2, END, 3, 4, 5, 6, END, END, 7, 8, 9, END, 50255]
"""Cut into shards of 6 tokens, as karpathy's and Jordan's scripts do, documents and all."""


def shards(folder, size=6):
    folder.mkdir(parents=True, exist_ok=True)
    for number, at in enumerate(range(0, len(STREAM), size)):
        name = f"fineweb_{'train' if number else 'val'}_{number:06d}.bin"
        (folder / name).write_bytes(llmc(STREAM[at : at + size]))
    return [recognise(p) for p in sorted(folder.glob("*.bin"))]


@pytest.mark.parametrize("place", ["elsewhere", "in place"])
def test_published_shards_are_used_as_they_are(place, tmp_path):
    files = shards(tmp_path / "fineweb")
    assert can_adopt(files)
    output = tmp_path / ("data" if place == "elsewhere" else "fineweb")
    dataset = adopt(files, output)
    verify_dataset(dataset)
    assert (dataset.tokens("train"), dataset.tokens("val")) == (len(STREAM) - 6, 6)
    got = np.empty(dataset.tokens("train"), np.uint16)
    dataset.stream("train").read(0, got)
    assert got.tolist() == STREAM[6:]
    for shard in dataset.shards:
        assert (output / shard.file).samefile(tmp_path / "fineweb" / shard.file)
    lengths = [np.fromfile(output / s.lengths, "<u4").tolist() for s in dataset.shards]
    assert [n for part in lengths for n in part] == [2, 1, 3, 1, 2, 3, 3]
    assert (
        dataset.manifest["documents"] | {"source": 7, "train": 5, "val": 2}
        == (dataset.manifest["documents"])
    )
    assert adopt(files, output).fingerprint == dataset.fingerprint  # again: nothing changes


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_exported_documents_are_whole_again(size, tmp_path):
    """With shards of 5 tokens the training stream itself begins with the rest of a document, and of
    2 or 1 a document is cut more than once."""
    dataset = adopt(shards(tmp_path / "fineweb", size), tmp_path / "data")
    EXPORTS.load("megatron").export(dataset, tmp_path / "out")
    tokens = np.fromfile(tmp_path / "out" / "train.bin", "<u2").tolist()
    stream = STREAM[size:]
    assert tokens == [*stream[stream[0] == END :], END]
    index = (tmp_path / "out" / "train.idx").read_bytes()
    (count,) = struct.unpack_from("<Q", index, 18)
    ends = np.cumsum(struct.unpack_from(f"<{count}i", index, 34))
    assert ends.tolist() == [n + 1 for n, t in enumerate(tokens) if t == END]


@pytest.mark.parametrize("flag", ["--val_fraction", "--shard_tokens"])
def test_flags_that_change_the_shards_are_obeyed(flag, tmp_path, monkeypatch, capsys):
    shards(tmp_path / "fineweb")
    monkeypatch.chdir(tmp_path)
    argv = ["prepare", "pretokenized", "--input", "fineweb", "--output", "made"]
    assert main([*argv, flag, {"--val_fraction": "0.3", "--shard_tokens": "4"}[flag]]) == 0
    made = open_dataset(tmp_path / "made")
    assert ("is not kept" in capsys.readouterr().err) == (flag == "--val_fraction")
    if flag == "--shard_tokens":  # what was validation by its name stays so
        assert made.manifest["documents"]["val"] == 2
    assert not any((tmp_path / "made" / s.file).stat().st_nlink > 1 for s in made.shards)


def test_a_disk_without_hard_links_gets_copies(tmp_path, monkeypatch):
    files = shards(tmp_path / "fineweb")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    dataset = adopt(files, tmp_path / "data")
    verify_dataset(dataset)
    for shard in dataset.shards:
        path = tmp_path / "data" / shard.file
        assert path.stat().st_nlink == 1
        assert path.read_bytes() == (tmp_path / "fineweb" / shard.file).read_bytes()


def test_what_cannot_be_used_as_it_is(tmp_path):
    files = shards(tmp_path / "fineweb")
    assert not can_adopt(files[:-1])  # no validation
    raw = tmp_path / "val.bin"
    raw.write_bytes(np.array(STREAM, "<u2").tobytes())
    assert not can_adopt([*files, recognise(raw)])


def test_another_vocabulary_and_other_files_are_refused(tmp_path):
    files = shards(tmp_path / "fineweb")
    path = files[1].path
    path.write_bytes(llmc([END, 50257]))
    with pytest.raises(DataError, match="token 1 is 50257") as caught:
        adopt([files[0], recognise(path)], tmp_path / "data")
    assert caught.value.name == "TOKEN-RANGE"
    assert not list((tmp_path / "data").iterdir())
    files = shards(tmp_path / "fineweb")
    adopt(files, tmp_path / "data")
    other = shards(tmp_path / "other", size=5)
    with pytest.raises(DataError, match="another file"):
        adopt(other, tmp_path / "data")
    with pytest.raises(DataError, match="same name"):
        adopt([files[0], other[0]], tmp_path / "new")
    with pytest.raises(DataError, match="other files"):
        adopt(files[:2], tmp_path / "data")


def test_samples_of_cut_documents_lack_no_token(tmp_path):
    dataset = adopt(shards(tmp_path / "fineweb", 5), tmp_path / "data")
    texts = [text for _, text in samples_of(dataset, "train", 9)]
    decode = get_tokenizer("gpt2").decode
    assert texts == [decode(ids) for ids in ([4, 5, 6], [], [], [7, 8, 9], [50255])]


def test_damage_after_adoption_is_found(tmp_path):
    dataset = adopt(shards(tmp_path / "fineweb"), tmp_path / "data")
    path = tmp_path / "data" / dataset.shards[1].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="SHA-256"):
        verify_dataset(open_dataset(tmp_path / "data"))


def test_cut_documents_are_allowed_only_where_the_manifest_says_so(tmp_path):
    dataset = adopt(shards(tmp_path / "fineweb"), tmp_path / "data")
    path = tmp_path / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"cut_documents": False}))
    with pytest.raises(DataError, match="begins without end-of-text"):
        verify_dataset(open_dataset(dataset.folder))


@pytest.mark.parametrize("seed", range(6))
def test_what_nanogpt_calls_validation_stays_so(seed, tmp_path, monkeypatch, capsys):
    """Its Shakespeare has no end-of-text: each file is one document."""
    random = np.random.default_rng(seed)
    files = {
        "train.bin": random.integers(0, 50256, 2000),
        "val.bin": random.integers(0, 50256, 200),
    }
    for name, tokens in files.items():
        tokens.astype("<u2").tofile(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "pretokenized", "--input", ".", "--output", "made"]) == 0
    made = open_dataset(tmp_path / "made")
    assert (made.tokens("train"), made.tokens("val")) == (2001, 201)
    assert "is not kept" not in capsys.readouterr().err


def test_one_document_of_tokens_is_cut(tmp_path, monkeypatch):
    np.arange(1000, dtype="<u2").tofile(tmp_path / "one.bin")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "pretokenized", "--input", "one.bin", "--output", "made"]) == 0
    made = open_dataset(tmp_path / "made")
    assert (made.tokens("train"), made.tokens("val")) == (991, 11)
    assert made.manifest["split"] == "the only document is cut at token 990"


def test_the_last_word_of_a_name_decides_its_split(tmp_path):
    for name, split in (("val_set_train_000000.bin", "train"), ("train_set_val_000001.bin", "val"),
                        ("test.bin", "val"), ("tokens.bin", "train")):  # fmt: skip
        assert split_of(tmp_path / name) == split
