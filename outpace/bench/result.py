"""What every result file holds: what was measured, where, with which versions."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core import files
from outpace.core.files import replace_json, storage_error
from outpace.runtime.hardware import detect
from outpace.train.environment import versions

RESULTS = Path("results")


def check_writable(name: str, output: Path | None) -> None:
    """StorageError when the result could not be written, before anything is measured."""
    files.check_writable(_path(name, output))


def write_result(name: str, device: str, body: dict[str, Any], output: Path | None = None) -> Path:
    """Write `body` with machine and versions to `output`, else results/NAME.json."""
    path = _path(name, output)
    machine = vars(detect(device)) | {"available_bytes": None}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    replace_json(
        path,
        {"benchmark": name, "date": date, "machine": machine, "versions": versions(), **body},
    )
    return path


def _path(name: str, output: Path | None) -> Path:
    """Where the result goes; its folder is made."""
    path = output or RESULTS / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    return path


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentile."""
    p20, median, p80 = np.percentile(values or [np.nan], (20, 50, 80)).tolist()
    return {"median": median, "p20": p20, "p80": p80, "n": len(values)}
