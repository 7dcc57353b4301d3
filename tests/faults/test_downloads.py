"""Datasets from a hub on this machine that breaks off, corrupts, refuses, hangs and redirects: the
same bytes in the end or exit 10, and never a file under its final name that is not whole."""

import errno
import fcntl
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import CLOSED, COMMIT, Hub, serve

from outpace.core import network
from outpace.core.errors import DataError, NetworkError, OutpaceError, StorageError
from outpace.data import downloads, stores
from outpace.data.downloads import Remote, download, drop, fetched
from outpace.data.stores import FsspecStore, HttpStore, HubStore, store_of

NAME = "plain_text/train-00000.parquet"
CHUNK = 1000


@pytest.fixture
def data() -> bytes:
    return random.Random(7).randbytes(150_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small pieces, short waits, no proxy, and a hub's client that asks our server alone."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(downloads, "pause", lambda *_: 0.01)
    monkeypatch.setattr(network, "pause", lambda *_: 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    yield
    downloads._COPIES.clear()


def point(hub: Hub, home: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    url = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))


def listed(hub: Hub, home: Path, monkeypatch) -> tuple[HubStore, Remote]:
    """The store, and the one file that it lists."""
    point(hub, home, monkeypatch)
    store = HubStore.at("a/b")
    (remote,) = store.find("plain_text")
    return store, remote


def partial(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_a_dataset_is_listed_with_sizes_and_hashes_of_one_commit(tmp_path, data, monkeypatch):
    with serve({NAME: data, "README.md": b"card"}) as hub:
        point(hub, tmp_path, monkeypatch)
        store = HubStore.at("a/b")
        found = store.find()
        assert store.commit == COMMIT
        assert [(r.path, r.size, r.digest.partition(":")[0]) for r in found] == [
            ("README.md", 4, "git"),
            (NAME, len(data), "sha256"),
        ]
        for remote in found:
            assert COMMIT in remote.url and remote.url.startswith(hub.address)
            path = download(remote, store, tmp_path / "d")
            assert path.read_bytes() == hub.files[remote.path]


@pytest.mark.parametrize(
    "behaviour", ["breaks", "busy_twice", "too_many", "wrong_once", "short_once"]
)
def test_h3_h4_a_bad_connection_gives_the_same_bytes(behaviour, tmp_path, data, monkeypatch):
    with serve({NAME: data}, behaviour, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        path = download(remote, store, tmp_path / "d")
    assert path.read_bytes() == data
    assert partial(tmp_path / "d") == ["train-00000.parquet"]
    assert hub.gets() > 1
    if behaviour == "breaks":
        starts = [int(r[6:-1]) for r in hub.ranges if r]
        assert starts == sorted(starts) and starts[0] >= CHUNK  # nothing came twice from zero


def test_h6_a_download_goes_on_where_an_earlier_process_ended(tmp_path, data, monkeypatch):
    with serve({NAME: data}, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        part = tmp_path / "d" / (NAME + ".part")
        part.parent.mkdir(parents=True)
        part.write_bytes(data[:100_001])
        assert download(remote, store, tmp_path / "d").read_bytes() == data
    assert hub.ranges == ["bytes=100001-"]
    assert not part.exists()


def test_h6_a_kill_leaves_no_lock_where_the_file_system_has_none(
    tmp_path, data, monkeypatch, capsys
):
    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    left = tmp_path / "d" / f"{Path(NAME).parent}/.{Path(NAME).name}.lock"
    left.parent.mkdir(parents=True)
    left.touch()  # of a process that was killed
    with serve({NAME: data}, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        assert download(remote, store, tmp_path / "d").read_bytes() == data
    assert "[NO-LOCK]" in capsys.readouterr().err


def test_h4_a_damaged_part_is_found_by_its_hash_and_fetched_again(tmp_path, data, monkeypatch):
    with serve({NAME: data}, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        part = tmp_path / "d" / (NAME + ".part")
        part.parent.mkdir(parents=True)
        part.write_bytes(bytes(100_001))
        assert download(remote, store, tmp_path / "d").read_bytes() == data
        part.write_bytes(data + b"and more")
        (tmp_path / "d" / NAME).write_bytes(bytes(len(data)))
        assert download(remote, store, tmp_path / "d").read_bytes() == data


@pytest.mark.parametrize("behaviour", ["wrong", "html", "loop", "to_file", "missing", "busy"])
def test_h4_h5_a_server_that_lies_is_given_up(behaviour, tmp_path, data, monkeypatch):
    with serve({NAME: data}, behaviour, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        with pytest.raises(NetworkError, match="cannot fetch"):
            download(remote, store, tmp_path / "d")
    assert not (tmp_path / "d" / NAME).exists()


@pytest.mark.parametrize("behaviour", ["hang", "drip"])
def test_h2_a_server_that_hangs_is_given_up(behaviour, tmp_path, data, monkeypatch):
    monkeypatch.setattr(downloads, "DOWNLOAD_S", 0.3)
    monkeypatch.setattr(downloads, "LEAST_BYTES_PER_S", 10**9)
    with serve({NAME: data}, behaviour, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        with pytest.raises(NetworkError, match="gave up after"):
            download(remote, store, tmp_path / "d")
    assert not (tmp_path / "d" / NAME).exists()


@pytest.mark.parametrize("behaviour", ["api:missing", "api:busy", "api:html", "api:hang"])
def test_h1_a_hub_that_cannot_be_asked_is_a_network_error(behaviour, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "CONTACT_S", 0.5)
    with serve({}, behaviour) as hub:
        point(hub, tmp_path, monkeypatch)
        with pytest.raises(NetworkError, match="a/b") as caught:
            HubStore.at("a/b")
    assert "--input" in caught.value.do
    point(Hub({}, address=CLOSED), tmp_path, monkeypatch)
    with pytest.raises(NetworkError, match="a/b"):
        HubStore.at("a/b")


def test_a_copy_in_the_hubs_own_cache_is_used_when_it_is_sound(tmp_path, data, monkeypatch):
    from huggingface_hub import hf_hub_download

    with serve({NAME: data}, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        cached = hf_hub_download(
            "a/b", NAME, repo_type="dataset", cache_dir=tmp_path / "hub", endpoint=hub.address
        )
        before = hub.gets()
        path = download(remote, store, tmp_path / "d")
        assert path == Path(cached) and hub.gets() == before
        drop(remote, tmp_path / "d")
        assert path.exists()
        path.resolve().write_bytes(bytes(len(data)))
        assert download(remote, store, tmp_path / "d") == tmp_path / "d" / NAME


def test_the_next_files_come_while_one_is_read_and_each_once(tmp_path, monkeypatch):
    files = {f"{n}.parquet": bytes([n]) * 1000 for n in range(5)}
    with serve(files) as hub:
        point(hub, tmp_path, monkeypatch)
        store = HubStore.at("a/b")
        remotes = store.find()
        for n, remote in enumerate(remotes):
            with fetched(remote, store, tmp_path / "d", remotes[n + 1 : n + 3]) as path:
                assert path.read_bytes() == files[remote.path]
                for later in remotes[n + 1 : n + 3]:
                    with fetched(later, store, tmp_path / "d") as ahead:
                        assert ahead.read_bytes() == files[later.path]
                drop(remote, tmp_path / "d")
                assert path.exists()  # it is being read
            assert not path.exists()
        assert all(hub.gets(name) == 1 for name in files)


def test_nothing_is_left_of_a_file_that_was_fetched_for_nothing(tmp_path, data, monkeypatch):
    first = "plain_text/train-00001.parquet"
    with serve({NAME: data, first: data[:99]}, "slow", victim=NAME) as hub:
        point(hub, tmp_path, monkeypatch)
        store = HubStore.at("a/b")
        ahead, now = store.find()
        part = tmp_path / "d" / (NAME + ".part")
        with fetched(now, store, tmp_path / "d", [ahead]):
            coming = downloads._COPIES[tmp_path / "d" / NAME].coming
            while not (part.exists() and part.stat().st_size):
                time.sleep(0.01)
        for remote in (now, ahead):
            drop(remote, tmp_path / "d")
        assert partial(tmp_path / "d") == []
    with pytest.raises(NetworkError, match="nobody needs it"):
        coming.result(5)
    assert partial(tmp_path / "d") == [] and hub.gets() == 1


def test_h6_too_small_a_disk_is_told_before_anything_is_fetched(
    tmp_path, data, monkeypatch, capsys
):
    with serve({NAME: data}, victim=NAME) as hub:
        store, remote = listed(hub, tmp_path, monkeypatch)
        downloads.announce([remote], store, tmp_path / "d", at_once=3)
        assert "0.1 MB to download" in capsys.readouterr().err
        monkeypatch.setattr(downloads, "SPARE_BYTES", 1 << 60)
        with pytest.raises(StorageError) as caught:
            downloads.announce([remote], store, tmp_path / "d", at_once=None)
        assert caught.value.name == "DISK" and caught.value.exit_code == 5
        assert hub.gets() == 0


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "c:x", ""])
def test_p15_names_that_lead_out_of_the_folder_are_refused(path):
    with pytest.raises(DataError, match="out of the download folder"):
        Remote(path, "https://example.invalid/x", 1)


def test_an_address_is_read_without_a_hub(tmp_path, data):
    with serve({"x.jsonl": data}, "breaks", victim="x.jsonl") as hub:
        store = store_of(hub.address)
        assert isinstance(store, HttpStore)
        (remote,) = store.find(f"{hub.address}/x.jsonl")
        assert remote.path == "127.0.0.1/x.jsonl" and remote.size == len(data) and remote.version
        assert download(remote, store, tmp_path).read_bytes() == data
        with pytest.raises(OutpaceError, match="absent"):
            store.find(f"{hub.address}/absent.jsonl")


def test_other_protocols_go_through_fsspec(tmp_path, data):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        memory.pipe(f"/bucket/{name}", name.encode() + data)
    store = store_of("memory://bucket")
    assert isinstance(store, FsspecStore)
    names = ["bucket/a.txt", "bucket/b.txt", "bucket/sub/c.txt"]
    assert [r.path for r in store.find("memory://bucket")] == names
    assert [r.path for r in store.find("memory://bucket/*.txt")] == names[:2]
    remote = store.find("memory://bucket/a.txt")[0]
    part = tmp_path / (remote.path + ".part")
    part.parent.mkdir()
    part.write_bytes((b"a.txt" + data)[:777])
    assert download(remote, store, tmp_path).read_bytes() == b"a.txt" + data
    with pytest.raises(DataError, match="absent"):
        store.find("memory://bucket/absent.txt")


def test_what_is_here_of_one_version_is_no_beginning_of_another(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/versions/x.txt", b"first" * 99)
    store = store_of("memory://versions")
    found = store.find("memory://versions/x.txt")[0]
    first, second = (replace(found, version=version) for version in ("1", "2"))

    def cut(remote, out, start):
        out.write(b"first" * 50)
        raise OutpaceError("CUT", "")

    broken = SimpleNamespace(read=cut, faults=store.faults, at_hand=store.at_hand)
    with pytest.raises(OutpaceError, match="CUT"):
        download(first, broken, tmp_path)
    assert [p.stat().st_size for p in tmp_path.rglob("*.part")] == [250]
    memory.pipe("/versions/x.txt", b"other" * 99)
    assert download(second, store, tmp_path).read_bytes() == b"other" * 99


@pytest.mark.parametrize("protocol", ["s3", "nosuch"])
def test_a_protocol_that_is_not_installed_is_told_in_one_line(protocol):
    if protocol == "s3":
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    with pytest.raises(OutpaceError) as caught:
        store_of(f"{protocol}://bucket").find(f"{protocol}://bucket/x.txt")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_h6_a_full_disk_is_a_storage_error(tmp_path, data, monkeypatch):
    class Full:
        def read(self, *_):
            raise OSError(28, os.strerror(28))

        def faults(self):
            return (OSError,)

        def at_hand(self, _):
            return None

    with pytest.raises(StorageError, match="No space left"):
        download(Remote("x", "https://x", 10), Full(), tmp_path)
