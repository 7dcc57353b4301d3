"""Validation text of one's own: `outpace prepare files --val_input`."""

import json
import shutil
from pathlib import Path

import pytest

from outpace.data.shards import open_dataset
from outpace.tokenizer import get_tokenizer

PREPARE = ["prepare", "files", "--tokenizer", "bytes", "--output", "made"]
GIVEN = ["--input", "train.jsonl", "more", "--val_input", "val.jsonl"]


@pytest.fixture
def texts(folder: Path) -> Path:
    (folder / "more").mkdir()
    files = {
        "train.jsonl": [f"training {i}" for i in range(300)],
        "more/b.jsonl": [f"more {i}" for i in range(40)],
        "val.jsonl": ["training 7", *[f"validation {i}" for i in range(60)]],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    return folder


def documents(folder: Path, split: str) -> list[str]:
    import numpy as np

    stream = open_dataset(folder).stream(split)
    tokens = np.empty(len(stream), np.uint16)
    stream.read(0, tokens)
    tokenizer = get_tokenizer("bytes")
    parts = np.split(tokens, np.flatnonzero(tokens == tokenizer.end_of_text))
    return [tokenizer.decode(part[1:].tolist()) for part in parts if len(part)]


def test_it_is_validation_and_nothing_else_is(run, texts):
    assert run(*PREPARE, *GIVEN).code == 0
    train, val = documents(texts / "made", "train"), documents(texts / "made", "val")
    assert sorted(train) == sorted(
        [*(f"training {i}" for i in range(300)), *(f"more {i}" for i in range(40))]
    )
    assert val == [f"validation {i}" for i in range(60)], "but for the copy of a training text"
    manifest = json.loads((texts / "made" / "manifest.json").read_text())
    assert "--val_input" in manifest["split"]
    assert manifest["source"]["validation"]["files"] == ["val.jsonl"]
    again = run(*PREPARE, *GIVEN)
    assert again.code == 0
    other = run(*PREPARE, *GIVEN[:-1], "train.jsonl")
    assert other.code != 0, "another validation is another dataset"


def test_the_bytes_do_not_depend_on_the_workers_or_the_shards(run, texts):
    assert run(*PREPARE, *GIVEN, "--workers", "1").code == 0
    shutil.move(texts / "made", texts / "one")
    assert run(*PREPARE, *GIVEN, "--workers", "3", "--shard_tokens", "900").code == 0
    for split in ("train", "val"):
        assert documents(texts / "made", split) == documents(texts / "one", split)


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--val_fraction", "0.2"], "--val_fraction and --val_input"),
        (["--split", "nanogpt"], "--split and --val_input"),
        (["--limit_tokens", "100"], "a limit may end before"),
    ],
)
def test_what_says_otherwise_is_refused(refused, texts, flags, hint):
    assert hint in refused(2, "BAD-VALUE", *PREPARE, *GIVEN, *flags).error


def test_a_file_on_both_sides_is_refused(refused, texts):
    argv = ["prepare", "files", "--input", "val.jsonl", "--val_input", "val.jsonl"]
    hint = "val.jsonl is in --input and in --val_input"
    assert hint in refused(2, "BAD-VALUE", *argv).error


def test_other_sources_have_no_validation_of_their_own(refused, texts):
    argv = ["prepare", "pydocs", "--val_input", "val.jsonl"]
    assert "--val_input is not for pydocs" in refused(2, "BAD-VALUE", *argv).error


@pytest.mark.parametrize(("train", "val"), [("a", "copy"), ("a", "empty"), ("empty", "a")])
def test_a_side_of_which_nothing_is_left_is_warned_of(run, folder, train, val):
    for name, text in (("a", "some text"), ("copy", "some text"), ("empty", "")):
        (folder / f"{name}.txt").write_text(text)
    done = run(*PREPARE, "--input", f"{train}.txt", "--val_input", f"{val}.txt")
    side = "training" if train == "empty" else "validation"
    assert done.code == 0 and f"nothing of the {side} text is left" in done.err
