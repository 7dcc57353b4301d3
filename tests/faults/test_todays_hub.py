"""`outpace prepare` and the rows of tasks, from a hub that answers as the real one does today: from
redirects, pages of a list and expiring addresses come the bytes that are there, all of them and no
others, or one line that says why not."""

import gzip
import json
import os
from pathlib import Path

import pytest
from fake_hub import CLOSED, Hub, serve
from harness import start
from huggingface_hub import constants
from test_downloads import point
from test_hub_datasets import Done, Preparing, argv, hasty, parquet, shards, texts
from todays_hub import CONVERTED, TodaysHub, serve_today

from outpace.core import hub as core_hub
from outpace.core import network
from outpace.core.errors import DataError, NetworkError, UsageError
from outpace.data import downloads
from outpace.data.downloads import Remote
from outpace.data.sources.hub import HubSource, Wanted
from outpace.data.sources.readers import Reading
from outpace.data.sources.remote import Downloading
from outpace.data.stores import HttpStore
from outpace.interop.hub import fetch

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


def test_killed_and_started_again_at_another_endpoint(tmp_path, prepare):
    """Each connection breaks after 3 kB, so that each file takes several signed addresses."""
    argv_ = argv(tmp_path, "huggingface", "allenai/c4", "--config", "en")
    with serve_today(c4(expire_after=3000)) as hub:
        child = start(*argv_, cwd=tmp_path, env=hub.env(tmp_path / "home"), setup=hasty)
        child.until(lambda: any(path.startswith("/cdn/") for path in list(hub.asked)))
        child.kill()
    assert child.code == -9
    with serve_today(c4(expire_after=3000)) as other:
        done = prepare(other, tmp_path, "huggingface", "allenai/c4", "--config", "en")
    assert done.code == 0, done.err
    assert documents(tmp_path) == ALL_OF_EN
    assert other.asked["/api/datasets/allenai/c4/revision/main"] == 0  # the list was kept


def test_a_broken_connection_costs_a_megabyte_at_most(tmp_path, monkeypatch):
    from huggingface_hub import file_download

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", constants.DOWNLOAD_CHUNK_SIZE)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    data = bytes(range(256)) * 4096 * 9
    with serve_today(TodaysHub({"a.bin": data}, expire_after=3 << 20)) as hub:
        point(hub, tmp_path, monkeypatch)  # type: ignore[arg-type]
        remote = Remote("a.bin", f"{hub.address}/datasets/owner/set/resolve/main/a.bin", len(data))
        assert downloads.download(remote, HttpStore(), tmp_path / "d").read_bytes() == data
    assert sum(n for path, n in hub.asked.items() if path.startswith("/cdn/")) < 6


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
        ("data_dir: data", ["data/b/y.parquet", "data/x.parquet"]),
        ("data_dir: ./data/b/", ["data/b/y.parquet"]),
        ("data_dir: .", ["data/b/y.parquet", "data/x.parquet", "z.parquet"]),
        ("data_dir: data\n  data_files: '*.parquet'", ["data/x.parquet"]),
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


def test_a_name_with_a_colon_is_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    name = "logs/2024-10-01T00:00:00.parquet"
    with serve_today(TodaysHub({name: b"x"})) as hub:
        point(hub, tmp_path, monkeypatch)  # type: ignore[arg-type]
        how = Reading(), Downloading(tmp_path / "out")
        assert [r.path for r in HubSource("huggingface", Wanted("owner/set"), *how).remotes] == [
            name
        ]


def line_of(done: Done, name: str) -> str:
    line = done.err.rstrip().rpartition("\n")[2]
    assert line.startswith(f"error[{name}]: ") and "Traceback" not in done.err, done.err
    return line


def test_refusals_say_what_the_hub_says(tmp_path, prepare):
    with serve_today(c4()) as hub:
        line = line_of(prepare(hub, tmp_path, "huggingface", "no/such"), "HUB")
        assert "401 Invalid username or password" in line and "HF_TOKEN" in line
        wrong = prepare(hub, tmp_path, "huggingface", "allenai/c4", "--revision", "mian")
        assert "no revision 'mian'" in line_of(wrong, "NO-REVISION") and wrong.code == 2
        prepare.patch.setenv("HF_TOKEN", "hf_that_is_over")
        line = line_of(prepare(hub, tmp_path, "huggingface", "allenai/c4", "--config", "en"), "HUB")
        assert "401 Invalid credentials" in line
    assert not (tmp_path / "data").exists()


def test_a_gated_dataset_is_told_from_a_broken_network(tmp_path, prepare):
    hub = c4(gated=True)
    with serve_today(hub):
        line = line_of(prepare(hub, tmp_path, "huggingface", "allenai/c4", "--config", "en"), "HUB")
        assert "Access to dataset allenai/c4 is restricted" in line and "HF_TOKEN" in line
        del hub.files["README.md"]  # which is the first to be refused
        done = prepare(hub, tmp_path, "huggingface", "allenai/c4", "--config", "en")
        line = line_of(done, "DOWNLOAD")
        assert "is restricted" in line and "accept its terms" in line


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


def test_the_rate_limit_is_waited_for_as_long_as_it_lasts(tmp_path, prepare):
    waits: list[str] = []
    prepare.patch.setattr(network, "pause", lambda _, asked: float(waits.append(asked) or 0))
    with serve_today(c4(busy=2, reset_s=217)) as hub:
        done = prepare(hub, tmp_path, "huggingface", "allenai/c4", "--config", "en")
    assert done.code == 0, done.err
    assert waits == ["217", "217"]
    assert core_hub.DOWNLOAD_S > network.LONGEST_WAIT_S > 217


def test_the_commit_is_asked_for_without_the_names_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    seen: list[int] = []
    from huggingface_hub import hf_api

    kept = hf_api.DatasetInfo

    def info(**data: object) -> object:
        seen.append(len(json.dumps(data)))
        return kept(**data)

    monkeypatch.setattr(hf_api, "DatasetInfo", info)
    with serve_today(c4()) as hub:
        point(hub, tmp_path, monkeypatch)  # type: ignore[arg-type]
        HubSource(
            "huggingface", Wanted("allenai/c4", config="en"), Reading(), Downloading(tmp_path)
        )
    assert seen and max(seen) < 200


def test_a_socks_proxy_without_its_package_is_no_bug(tmp_path, prepare):
    from huggingface_hub.utils import close_session

    try:
        import socksio  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("socksio is installed")
    close_session()
    for name in ("NO_PROXY", "no_proxy"):
        prepare.patch.delenv(name, raising=False)
    prepare.patch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")
    done = prepare(Hub({}, address=CLOSED), tmp_path, "openwebtext")
    close_session()
    assert "socks" in line_of(done, "HUB").lower()


def test_an_address_that_leads_to_another_host(tmp_path, monkeypatch):
    """As the assets of a release on GitHub do; the length is what the last host says."""
    monkeypatch.setenv("NO_PROXY", "*")
    with serve({"x.jsonl": b'{"text": "x"}\n'}, "head:to_other_once", victim="x.jsonl") as hub:
        store = HttpStore()
        (remote,) = store.find(f"{hub.address}/x.jsonl")
        assert remote.size == 14 and remote.url == f"{hub.address}/x.jsonl"
        assert downloads.download(remote, store, tmp_path).read_bytes() == hub.files["x.jsonl"]


def test_a_model_by_its_old_name_and_rows_of_the_conversion(tmp_path, monkeypatch):
    """`gpt2` is openai-community/gpt2 by now: redirected, and each file checked by its hash. The
    store of pieces (Xet) is not asked: it is elsewhere, and closed to some who reach the hub."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    files = {"config.json": b'{"n_layer": 1}' * 99, "model.safetensors": bytes(99_999)}
    rows = {"default/test/0000.parquet": parquet({"text": texts(1, 9)})}
    with serve_today(TodaysHub(files, rows, name="openai-community/gpt2", was="gpt2")) as hub:
        point(hub, tmp_path, monkeypatch)
        folder = fetch("gpt2", list(files))
        assert {name: (folder / name).read_bytes() for name in files} == files
        assert all(len(Path(os.readlink(folder / name)).name) in (40, 64) for name in files)
    with serve_today(TodaysHub(files, rows, name="owner/rows")) as hub:
        point(hub, tmp_path, monkeypatch)
        of = {"kind": "dataset", "revision": CONVERTED}
        folder = fetch("owner/rows", list(rows), **of)
        assert (folder / "0000.parquet").read_bytes() == next(iter(rows.values()))
        with pytest.raises(NetworkError) as caught:
            fetch("owner/set", list(rows), **of)
    assert f"0000.parquet --repo-type dataset --revision {CONVERTED}" in caught.value.do
    assert "FOLDER/default/test/0000.parquet here" in caught.value.do
