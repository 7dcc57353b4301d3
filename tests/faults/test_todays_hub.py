"""`outpace prepare` and the rows of tasks, from a hub that answers as the real one does today: from
redirects, pages of a list and expiring addresses come the bytes that are there, all of them and no
others, or one line that says why not."""

import gzip
import json
from pathlib import Path

import pytest
from test_downloads import point
from test_hub_datasets import Done, Preparing, parquet, shards, texts
from todays_hub import CONVERTED, TodaysHub, serve_today

from outpace.core.errors import DataError, UsageError
from outpace.data.sources.hub import HubSource, Wanted
from outpace.data.sources.readers import Reading
from outpace.data.sources.remote import Downloading
from outpace.data.stores import HttpStore

C4_CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: realnewslike
  data_files:
  - split: train
    path: realnewslike/c4-train.*.json.gz
---
"""


def lines(seed: int, count: int) -> bytes:
    rows = ({"text": t, "url": "https://example.org"} for t in texts(seed, count))
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)


def c4(**more: bool | int | str) -> TodaysHub:
    """As allenai/c4: lines of JSON in .json.gz, and a conversion of the beginning alone."""
    names = [f"en/c4-train.{n:05d}-of-00004.json.gz" for n in range(4)]
    files = {name: lines(n, 60) for n, name in enumerate(names)}
    files["en/c4-validation.00000-of-00001.json.gz"] = lines(8, 10)
    files["realnewslike/c4-train.00000-of-00001.json.gz"] = lines(9, 10)
    files |= {"README.md": C4_CARD, ".gitattributes": b"*.gz filter=lfs"}
    converted = {"en/partial-train/0000.parquet": parquet({"text": texts(0, 20)})}
    return TodaysHub(files, converted, name="allenai/c4", was="c4", **more)  # type: ignore[arg-type]


ALL_OF_EN = sorted(t for n in range(4) for t in texts(n, 60))


@pytest.fixture
def prepare(monkeypatch, capsys) -> Preparing:
    return Preparing(monkeypatch, capsys)


def documents(folder: Path) -> list[str]:
    ids = [i for n, d in shards(folder).items() if n.endswith(".bin")
           for i in memoryview(d)[1024:].cast("H")]  # fmt: skip
    return sorted("".join(chr(i) if i < 256 else "\0" for i in ids).split("\0")[1:])


@pytest.mark.parametrize("name", ["allenai/c4", "c4"])
def test_c4_comes_whole_and_from_one_configuration(name, tmp_path, prepare):
    with serve_today(c4(token="hf_of_somebody")) as hub:
        prepare.patch.setenv("HF_TOKEN", "hf_of_somebody")
        done = prepare(hub, tmp_path, "huggingface", name, "--config", "en")
    assert done.code == 0, done.err
    assert documents(tmp_path) == ALL_OF_EN
    assert hub.faults == []


TWO = dict.fromkeys((f"{f}/0000.parquet" for f in ("a/train", "a/test", "b/train-part0")), b"x")
SCRIPT = {"set.py": b"raise SystemExit('a script')", "README.md": b"# A set"}


@pytest.mark.parametrize(
    ("converted", "config", "split", "found"),
    [
        (TWO, "a", "train", ["a/train/0000.parquet"]),
        (TWO, "a", "test", ["a/test/0000.parquet"]),
        (TWO, "b", "train", ["b/train-part0/0000.parquet"]),
        ({k: v for k, v in TWO.items() if k[0] == "a"}, "", "train", ["a/train/0000.parquet"]),
        (TWO, "", "train", (UsageError, "2 configurations")),
        (TWO, "c", "train", (UsageError, "'c'")),
        (TWO, "b", "test", (UsageError, "no split 'test'")),
        ({}, "", "train", (DataError, "no parquet")),
        ({"a/partial-train/0000.parquet": b"x"}, "", "train", (DataError, "only the first part")),
    ],
)
def test_the_hubs_conversion(converted, config, split, found, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    wanted = Wanted("owner/set", config=config, split=split)
    how = Reading(), Downloading(tmp_path / "out")
    with serve_today(TodaysHub(SCRIPT, converted)) as hub:
        point(hub, tmp_path, monkeypatch)  # type: ignore[arg-type]
        if isinstance(found, list):
            assert [r.path for r in HubSource("huggingface", wanted, *how).remotes] == found
        else:
            with pytest.raises(found[0], match=found[1]):
                HubSource("huggingface", wanted, *how)


def test_the_part_that_was_converted_is_taken_when_it_is_asked_for(tmp_path, prepare):
    part = ("--revision", CONVERTED, "--config", "en/partial-train")
    with serve_today(c4()) as hub:
        done = prepare(hub, tmp_path, "huggingface", "allenai/c4", *part)
    assert done.code == 0, done.err
    assert documents(tmp_path) == sorted(texts(0, 20))


@pytest.mark.parametrize(
    ("of_config", "found"),
    [
        ("data_files: data/*", ["data/x.parquet"]),
        ("data_files: data/**", ["data/b/y.parquet", "data/x.parquet"]),
        ("data_files: '**/y.parquet'", ["data/b/y.parquet"]),
        ("data_files: '**.parquet'", ["data/b/y.parquet", "data/x.parquet", "z.parquet"]),
        ("data_files: ./z.parquet", ["z.parquet"]),
    ],
)
def test_a_cards_patterns_mean_what_they_mean_to_datasets(of_config, found, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    card = "---\nconfigs:\n- config_name: other\n  data_files: no\n- config_name: this\n"
    card += f"  default: true\n  {of_config}\n---\n"
    files = dict.fromkeys(("data/x.parquet", "data/b/y.parquet", "z.parquet"), b"x")
    with serve_today(TodaysHub(files | {"README.md": card.encode()})) as hub:
        point(hub, tmp_path, monkeypatch)  # type: ignore[arg-type]
        how = Reading(), Downloading(tmp_path / "out")
        assert [
            r.path for r in HubSource("huggingface", Wanted("owner/set"), *how).remotes
        ] == found


def line_of(done: Done, name: str) -> str:
    line = done.err.rstrip().rpartition("\n")[2]
    assert line.startswith(f"error[{name}]: ") and "Traceback" not in done.err, done.err
    return line


def test_a_card_that_does_not_come_is_not_taken_for_none(tmp_path, prepare):
    hub = c4()
    with serve_today(hub):
        del hub.files["README.md"]
        del hub.files[".gitattributes"]
        hub.files |= {"README.md": C4_CARD}
        prepare.patch.setattr(HttpStore, "read", _refuse)
        done = prepare(hub, tmp_path, "huggingface", "allenai/c4")
    assert "out of reach" in line_of(done, "HUB")
    assert not list(tmp_path.rglob("listing.json"))


def _refuse(*_: object) -> None:
    raise OSError("out of reach")
