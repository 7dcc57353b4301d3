"""Inputs and outputs on a file system that is not this disk's (fsspec's in memory)."""

import json
from pathlib import Path

import fsspec
import pytest
from conftest import files

from outpace.cli.main import main
from outpace.data.shards import open_dataset, verify_dataset


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    fsspec.filesystem("memory").store.clear()


def prepare(*more):
    common = ["--tokenizer", "bytes", "--val_fraction", "0.2", "--shard_tokens", "200"]
    return main(["prepare", "files", *common, *more])


def test_text_there_and_shards_there_are_those_of_this_disk(tmp_path):
    memory = fsspec.filesystem("memory")
    (tmp_path / "text").mkdir()
    for n in range(30):
        text = f"document {n} " * (n + 1)
        (tmp_path / "text" / f"{n:02d}.txt").write_text(text)
        memory.pipe(f"/bucket/text/{n:02d}.txt", text.encode())
    assert prepare("--input", "text", "--output", "here") == 0
    argv = ("--input", "memory://bucket/text", "--output", "memory://bucket/owt")
    assert prepare(*argv) == 0
    memory.get("/bucket/owt", str(tmp_path / "back"), recursive=True)
    verify_dataset(open_dataset(tmp_path / "back"))
    ours, theirs = files(tmp_path / "here"), files(tmp_path / "back")
    assert {n for n in ours if n.endswith((".bin", ".len"))} <= theirs.keys()
    assert all(theirs[n] == h for n, h in ours.items() if n.endswith((".bin", ".len")))
    assert not [n for n in theirs if n.startswith(".")]
    assert prepare(*argv) == 0  # nothing to do


def test_another_dataset_there_is_left_alone(tmp_path, capsys):
    memory = fsspec.filesystem("memory")
    (tmp_path / "a.txt").write_text("some text, and more of it")
    memory.pipe("/bucket/owt/manifest.json", b"{}")
    assert prepare("--input", "a.txt", "--output", "memory://bucket/owt") == 3
    assert "error[OTHER-DATASET]" in capsys.readouterr().err
    assert memory.cat("/bucket/owt/manifest.json") == b"{}"
    assert memory.ls("/bucket/owt", detail=False) == ["/bucket/owt/manifest.json"]


def test_an_upload_that_fails_keeps_everything_and_goes_on(tmp_path, capsys, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    (tmp_path / "a.txt").write_text("some text, and more of it")
    real, count = MemoryFileSystem.put_file, iter(range(100))

    def put_file(self, path, target, **options):
        if next(count) == 2:
            raise ConnectionError("gone")
        return real(self, path, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    argv = ("--input", "a.txt", "--output", "memory://bucket/owt")
    assert prepare(*argv) == 10
    assert "error[UPLOAD]" in capsys.readouterr().err
    memory = fsspec.filesystem("memory")
    assert not memory.exists("/bucket/owt/manifest.json")
    assert len(memory.ls("/bucket/owt")) == 2
    assert prepare(*argv) == 0
    assert next(count) == 3 + len(memory.ls("/bucket/owt")) - 2


def test_an_export_there(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some text, and more of it")
    assert prepare("--input", "a.txt", "--output", "d") == 0
    capsys.readouterr()
    assert main(["data", "export", "d", "memory://bucket/out", "--to", "nanogpt", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["bytes"]
    memory = fsspec.filesystem("memory")
    assert {n: memory.info(f"/bucket/out/{n}")["size"] for n in sizes} == sizes


def test_an_export_there_takes_nothing_else_along_and_leaves_the_dataset_alone(tmp_path):
    """Even where the address ends in the dataset's own name."""
    (tmp_path / "a.txt").write_text("some text, and more of it")
    assert prepare("--input", "a.txt", "--output", "data/d") == 0
    before = files(tmp_path / "data/d")
    assert main(["data", "export", "data/d", "memory://bucket/d", "--to", "nanogpt"]) == 0
    memory = fsspec.filesystem("memory")
    names = {path.rpartition("/")[2] for path in memory.find("/bucket/d")}
    assert names and names <= {"train.bin", "val.bin", "meta.pkl"}
    assert files(tmp_path / "data/d") == before
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["d"]


@pytest.mark.shared
def test_questions_there(shared):
    questions = str(shared / "hellaswag" / "hellaswag_val.jsonl")
    address = "memory://bucket/hellaswag"
    Path("data/hellaswag").mkdir(parents=True)
    Path("data/hellaswag/other.txt").write_text("stays here")
    assert main(["prepare", "hellaswag", "--input", questions, "--output", address]) == 0
    memory = fsspec.filesystem("memory")
    with open(questions, "rb") as f:
        assert memory.cat("/bucket/hellaswag/hellaswag_val.jsonl") == f.read()
    assert len(memory.find("/bucket/hellaswag")) == 1


def test_a_protocol_that_cannot_be_used_is_told_before_any_work(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("text")
    assert prepare("--input", "a.txt", "--output", "nosuch://bucket/owt") == 2
    assert "error[NO-PROTOCOL]" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
