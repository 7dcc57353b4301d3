"""Small copies of OpenWebText and FineWeb on a hub on this machine, as real parquet files: through
every fault of the network, and killed and started again, the shards are the same bytes.
"""

import io
import json
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import CLOSED, COMMIT, Hub, serve
from harness import start
from test_downloads import point

from outpace.cli.main import main
from outpace.core import network
from outpace.core.errors import DataError, UsageError
from outpace.data import downloads
from outpace.data.prepare import PrepareOptions
from outpace.data.rank_parts import prepare_share
from outpace.data.sources.hub import HubSource, Wanted, fineweb
from outpace.data.sources.readers import Reading
from outpace.data.sources.remote import Downloading

WORDS = ["the", "gull", "stood", "on", "a", "rail", "and", "looked", "at", "water", "owed", "cold"]
OWT = "plain_text/train-{n:05d}-of-00003.parquet"
CARD = b"""---
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
---
# OpenWebText
"""
TWO_CONFIGS = CARD.replace(b"---\n#", b"- config_name: broken\n  data_files: nowhere/*\n---\n#")

HUBS_OWN = ("api", "agent-harnesses")
"""What huggingface_hub asks of its own, the second once a day."""


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [
        f"{seed} {n} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 90))) for n in range(count)
    ]


def parquet(columns: dict[str, list[object]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=40, compression="zstd")
    return out.getvalue()


@pytest.fixture(scope="module")
def openwebtext() -> dict[str, bytes]:
    files = {OWT.format(n=n): parquet({"text": texts(n, 130)}) for n in range(3)}
    return {**files, "README.md": CARD, "openwebtext.py": b"raise SystemExit('a script')"}


@pytest.fixture(scope="module")
def fineweb_edu() -> dict[str, bytes]:
    def rows(seed: int) -> dict[str, list[object]]:
        found = texts(seed, 90)
        return {
            "text": found,
            "id": [f"<urn:{n}>" for n in range(90)],
            "url": [f"https://example.org/{n}" for n in range(90)],
            "language_score": [0.9] * 90,
            "token_count": [7] * 90,
        }

    folders = ("sample/10BT/000", "sample/10BT/001", "sample/100BT/000", "data/CC-MAIN-2024-10/000")
    return {f"{name}_00000.parquet": parquet(rows(10 + n)) for n, name in enumerate(folders)}


@dataclass
class Done:
    code: int
    err: str


class Preparing:
    """`outpace prepare` in this process, of the hub on this machine; `kill` needs another."""

    def __init__(self, monkeypatch, capsys) -> None:
        self.patch, self.capsys = monkeypatch, capsys
        hasty(monkeypatch.setattr)
        monkeypatch.setenv("NO_PROXY", "*")

    def __call__(self, hub: Hub, folder: Path, *more: str) -> Done:
        point(hub, folder / "home", self.patch)
        downloads._COPIES.clear()
        code = main(argv(folder, *more))
        return Done(code, self.capsys.readouterr().err)


@pytest.fixture
def prepare(monkeypatch, capsys) -> Preparing:
    return Preparing(monkeypatch, capsys)


def argv(folder: Path, *more: str) -> list[str]:
    common = ["--output", str(folder / "data"), "--workers", "2"]
    if "pretokenized" in more:  # these flags would change what is used as it is
        return ["prepare", *more, *common]
    common += ["--shard_tokens", "20000"]
    of_bytes = ["--tokenizer", "bytes", "--val_fraction", "0.05"] if "tokens" not in more else []
    return ["prepare", *(more or ("openwebtext",)), *common, *of_bytes]


def hasty(patch: Callable[[object, str, object], None] = setattr) -> None:
    """Small pieces and short waits."""
    from huggingface_hub import constants, file_download

    patch(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    patch(file_download.time, "sleep", lambda _: None)
    patch(downloads, "pause", lambda *_: 0.01)
    patch(network, "pause", lambda *_: 0.01)
    patch(downloads, "DOWNLOAD_S", 0.7)
    patch(downloads, "LEAST_BYTES_PER_S", 10**9)


def shards(folder: Path) -> dict[str, bytes]:
    """The shards and the lengths of their documents."""
    return {
        p.name: p.read_bytes()
        for p in (folder / "data").iterdir()
        if p.suffix in (".bin", ".len") and not p.name.startswith(".")
    }


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "data" / "manifest.json").read_text())
    return found


@pytest.fixture(scope="module")
def undisturbed(openwebtext, tmp_path_factory) -> dict[str, bytes]:
    """The shards of the same files, given as files of this disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, data in openwebtext.items():
        if name.endswith(".parquet"):
            (folder / Path(name).name).write_bytes(data)
    assert main(argv(folder, "files", "--input", str(folder))) == 0
    found = shards(folder)
    assert len(found) > 5
    ids = [
        i for n, d in found.items() if n.endswith(".bin") for i in memoryview(d)[1024:].cast("H")
    ]
    documents = "".join(chr(i) if i < 256 else "\0" for i in ids).split("\0")[1:]
    assert sorted(documents) == sorted(t for n in range(3) for t in texts(n, 130))
    return found


@pytest.mark.parametrize("behaviour", ["", "breaks", "wrong_once", "busy_twice", "too_many"])
def test_h3_h4_faults_of_the_network_change_no_byte(
    behaviour, openwebtext, undisturbed, tmp_path, prepare
):
    with serve(openwebtext, behaviour, victim=OWT.format(n=1)) as hub:
        done = prepare(hub, tmp_path)
    assert done.code == 0, done.err
    assert (hub.gets() > 1) == bool(behaviour)
    assert shards(tmp_path) == undisturbed
    source = manifest(tmp_path)["source"]
    assert source["dataset"] == "Skylion007/openwebtext" and source["commit"] == COMMIT
    assert source["files"] == [OWT.format(n=n) for n in range(3)]
    assert str(tmp_path) not in json.dumps(manifest(tmp_path))
    assert "3 files" in done.err and "to download" in done.err  # said before it starts
    left = [p.name for p in (tmp_path / "data" / ".downloads").rglob("*") if p.is_file()]
    assert left == ["listing.json"]


@pytest.mark.parametrize("behaviour", ["wrong", "html", "hang", "short"])
def test_h4_a_hub_that_stays_bad_ends_it_with_exit_10_and_it_goes_on_later(
    behaviour, openwebtext, undisturbed, tmp_path, prepare
):
    with serve(openwebtext, behaviour, victim=OWT.format(n=2)) as hub:
        done = prepare(hub, tmp_path)
        assert done.code == 10, done.err
        line = done.err.rstrip().rpartition("\n")[2]
        assert line.startswith("error[DOWNLOAD]: ") and "Traceback" not in done.err
        assert not (tmp_path / "data" / ".downloads" / OWT.format(n=2)).exists()
        assert not (tmp_path / "data" / "manifest.json").exists()
        hub.behaviour = ""
        again = prepare(hub, tmp_path)
    assert again.code == 0, again.err
    assert shards(tmp_path) == undisturbed


def test_h6_killed_in_mid_download_and_started_again(openwebtext, undisturbed, tmp_path, prepare):
    victim = OWT.format(n=1)
    with serve(openwebtext, "slow", victim=victim) as hub:
        env = hub.env(tmp_path / "home")
        child = start(*argv(tmp_path), "--keep_downloads", cwd=tmp_path, env=env, setup=hasty)
        part = tmp_path / "data" / ".downloads" / (victim + ".part")
        child.until(lambda: part.exists() and part.stat().st_size > 0)
        child.kill()
        assert child.code == -9, child.err
        assert not part.with_suffix("").exists()
        have = part.stat().st_size
        hub.behaviour = ""
        again = prepare(hub, tmp_path, "openwebtext", "--keep_downloads")
        assert again.code == 0, again.err
        assert shards(tmp_path) == undisturbed
        assert hub.ranges[-1] == f"bytes={have}-"
        names = sorted(p.name for p in part.parent.glob("*.parquet"))
        assert names == [Path(OWT.format(n=n)).name for n in range(3)]
        before = hub.asked.copy()
    # a third time nothing is asked: the hub may be gone
    again = prepare(Hub({}, address=CLOSED), tmp_path)
    assert again.code == 0, again.err
    assert hub.asked == before


def test_only_one_samples_files_are_fetched(fineweb_edu, tmp_path, prepare):
    with serve(fineweb_edu) as hub:
        done = prepare(hub, tmp_path, "fineweb-edu", "--sample", "10BT")
        assert done.code == 0, done.err
        fetched = {f for (m, f), n in hub.asked.items() if m == "GET" and f not in HUBS_OWN}
        assert fetched == {f for f in fineweb_edu if f.startswith("sample/10BT/")}
    assert manifest(tmp_path)["documents"]["source"] == 180
    with pytest.raises(UsageError, match="10BT"):
        fineweb("fineweb", "10bt", "main")
    assert fineweb("fineweb", "CC-MAIN-2024-10", "main").folder == "data/CC-MAIN-2024-10"


def test_what_cuts_text_behind_an_address_makes_it_another_dataset(tmp_path, prepare):
    with serve({"x.txt": b"one two\n---\nthree four\n---\ncaf\xe9"}) as hub:
        address = f"{hub.address}/x/resolve/main/x.txt"
        argv = ("files", "--input", address, "--separator", "\\n---\\n", "--errors")
        assert prepare(hub, tmp_path, *argv, "skip").code == 0
        source = manifest(tmp_path)["source"]
        assert (source["separator"], source["errors"]) == ("\n---\n", "skip")
        assert manifest(tmp_path)["documents"]["source"] == 2
        done = prepare(hub, tmp_path, *argv, "replace")
        assert done.code == 3 and "errors skip, not replace" in done.err
        done = prepare(hub, tmp_path, "files", "--input", address, "--errors", "skip")
        assert done.code == 3 and "separator" in done.err


def test_any_dataset_with_a_column_and_the_nearest_for_a_wrong_one(tmp_path, prepare):
    ids = list(range(50))
    data = {
        "data/train-0.parquet": parquet({"content": texts(1, 50), "id": ids}),
        "data/test-0.parquet": parquet({"content": texts(2, 50), "id": ids}),
    }
    with serve(data) as hub:
        wrong = prepare(hub, tmp_path, "huggingface", "some/set", "--column", "contents")
        assert wrong.code == 3, wrong.err
        line = wrong.err.rstrip().rpartition("\n")[2]
        assert "'contents' (did you mean content?)" in line
        assert not list((tmp_path / "data").glob("*.bin"))
        done = prepare(hub, tmp_path, "huggingface", "some/set", "--column", "content")
        assert done.code == 0, done.err
    assert manifest(tmp_path)["documents"]["source"] == 50


def test_documents_come_from_the_hubs_file_wherever_it_lies_here(
    openwebtext, tmp_path, prepare, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with serve(openwebtext) as hub:
        assert prepare(hub, Path(), "openwebtext").code == 0
    assert set(manifest(tmp_path)["from"]) == {OWT.format(n=n) for n in range(3)}


def test_a_column_of_tokens_passes_by_the_tokenizer(tmp_path, prepare):
    tokens = ("huggingface", "some/set", "--column", "tokens")
    rows = [[50256, 1, 2, 3], [4, 5, 50256, 6], [], [50255]]
    with serve({"data/train-0.parquet": parquet({"tokens": rows})}) as hub:
        done = prepare(hub, tmp_path, *tokens, "--val_fraction", "0")
    assert done.code == 0, done.err
    ids = memoryview(shards(tmp_path)["train_000000.bin"])[1024:].cast("H").tolist()
    assert ids == [50256, 1, 2, 3, 50256, 4, 5, 50256, 6, 50256, 50255]
    with serve({"data/train-0.parquet": parquet({"tokens": [[1], [128000]]})}) as hub:
        done = prepare(hub, tmp_path / "x", *tokens)
    assert done.code == 3
    assert "error[TOKEN-RANGE]" in done.err and "row 2" in done.err and "128000" in done.err


def test_the_card_of_a_folder_behind_an_address_is_no_document(openwebtext, tmp_path, prepare):
    import fsspec

    name = OWT.format(n=0)
    files = {f"/cards/{n}": openwebtext[n] for n in (name, "README.md")}
    fsspec.filesystem("memory").pipe(files)
    with serve({}) as hub:
        assert prepare(hub, tmp_path, "files", "--input", "memory://cards").code == 0
    assert set(manifest(tmp_path)["from"]) == {f"cards/{name}"}


def test_published_token_files_are_fetched_and_used_as_they_are(tmp_path, prepare):
    def shard(n: int) -> bytes:
        tokens = array("H", [50256, *range(n, n + 400)])
        return (
            array("i", [20240520, 1, len(tokens)]).tobytes().ljust(1024, b"\0") + tokens.tobytes()
        )

    names = ["fineweb_val_000000.bin", *(f"fineweb_train_{n:06d}.bin" for n in (1, 2, 3))]
    data = {name: shard(n) for n, name in enumerate(names)}
    argv = ("pretokenized", "kjj0/fineweb10B-gpt2", "--limit_tokens", "1000")
    with serve(data | {"README.md": b"x"}, "breaks", victim=names[1]) as hub:
        done = prepare(hub, tmp_path, *argv)
        assert done.code == 0, done.err
        assert {f for (m, f) in hub.asked if m == "GET" and f not in HUBS_OWN} == set(names[:3])
        before = hub.asked.copy()
        found = {p.name: p.read_bytes() for p in (tmp_path / "data").glob("*.bin")}
        assert found == {name: data[name] for name in names[:3]}
        assert not list((tmp_path / "data" / ".downloads").glob("*.bin"))
        assert prepare(hub, tmp_path, *argv).code == 0
        assert hub.asked == before
    assert manifest(tmp_path)["tokens"] == {"train": 802, "val": 401}


def test_a_rank_fetches_and_deletes_no_file_of_another(openwebtext, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    names = [f"part-{n}.parquet" for n in range(8)]
    files = {name: openwebtext[OWT.format(n=0)] for name in names}
    out = tmp_path / "out"
    of_another = out / ".downloads" / names[0]
    of_another.parent.mkdir(parents=True)
    of_another.write_bytes(files[names[0]])  # which rank 0 is reading
    with serve(files) as hub:
        point(hub, tmp_path, monkeypatch)
        source = HubSource("huggingface", Wanted("a/b"), Reading(), Downloading(out))
        options = PrepareOptions("bytes")
        assert prepare_share(source, out, options, rank=2, world_size=4, workers=1) is None
        assert [hub.gets(name) for name in names] == [0, 0, 1, 0, 0, 0, 1, 0]
    assert sorted(p.name for p in (out / ".downloads").glob("*.parquet")) == [names[0]]


def test_files_behind_addresses(openwebtext, undisturbed, tmp_path, prepare):
    import fsspec

    names = [OWT.format(n=n) for n in range(3)]
    fsspec.filesystem("memory").pipe({f"/owt/{n}": openwebtext[n] for n in names[1:]})
    with serve(openwebtext, "breaks", victim=names[0]) as hub:
        first = f"{hub.address}/x/resolve/main/{names[0]}"
        done = prepare(hub, tmp_path, "files", "--input", first, "memory://owt")
    assert done.code == 0, done.err
    assert shards(tmp_path) == undisturbed


def test_two_addresses_of_one_path_are_not_taken_for_one_file(tmp_path, prepare):
    with serve({"x.txt": b"one two"}) as hub:
        address = f"{hub.address}/x/resolve/main/x.txt"
        done = prepare(hub, tmp_path, "files", "--input", f"{address}?part=1", f"{address}?part=2")
        assert done.code == 2 and "SAME-NAME" in done.err
        assert prepare(hub, tmp_path, "files", "--input", address, address).code == 0


@pytest.mark.parametrize(
    ("wanted", "error", "match"),
    [
        (Wanted("a/b", config="plain"), UsageError, "did you mean plain_text"),
        (Wanted("a/b"), UsageError, "2 configurations"),
        (Wanted("a/b", config="plain_text", split="tain"), UsageError, "did you mean train"),
        (Wanted("a/b", config="broken"), DataError, "no parquet"),
    ],
)
def test_what_the_card_does_not_have_is_named(
    wanted, error, match, openwebtext, tmp_path, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "*")
    with serve(openwebtext | {"README.md": TWO_CONFIGS}) as hub:
        point(hub, tmp_path, monkeypatch)
        with pytest.raises(error, match=match):
            HubSource("huggingface", wanted, Reading(), Downloading(tmp_path / "out"))


def test_a_split_that_no_file_is_named_for_is_refused(openwebtext, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    files = {f"part-{n}.parquet": openwebtext[OWT.format(n=n)] for n in range(2)}
    where = Reading(), Downloading(tmp_path / "out")
    with serve(files) as hub:
        point(hub, tmp_path, monkeypatch)
        assert len(HubSource("huggingface", Wanted("a/b"), *where).remotes) == 2
        with pytest.raises(UsageError, match="validation"):
            HubSource("huggingface", Wanted("a/b", split="validation"), *where)


@pytest.mark.parametrize("card", [b"---\nconfigs: [\n---\n", b"---\nconfigs: 3\n---\n"])
def test_a_card_that_cannot_be_read_counts_as_none(card, openwebtext, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with serve(openwebtext | {"README.md": card}) as hub:
        point(hub, tmp_path, monkeypatch)
        found = HubSource("huggingface", Wanted("a/b"), Reading(), Downloading(tmp_path / "out"))
    assert found.remotes
