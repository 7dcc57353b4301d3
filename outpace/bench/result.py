"""What every result file holds: what was measured, where, with which versions."""

import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outpace.core import files
from outpace.core.files import replace_json, storage_error
from outpace.runtime.hardware import detect
from outpace.train.run import versions

RESULTS = Path("benchmarks/results")


def check_writable(name: str, output: Path | None) -> None:
    """StorageError when the result could not be written, before anything is measured."""
    path = output or RESULTS / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    files.check_writable(path)


def write_result(name: str, device: str, body: dict[str, Any], output: Path | None = None) -> Path:
    """Write `body` with machine and versions to `output`, else benchmarks/results/NAME.json."""
    path = output or RESULTS / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    machine = vars(detect(device)) | {"available_bytes": None}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    replace_json(
        path,
        {"benchmark": name, "date": date, "machine": machine, "versions": versions(), **body},
    )
    return path


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentile."""
    if len(values) < 2:
        value = values[0] if values else float("nan")
        return {"median": value, "p20": value, "p80": value, "n": len(values)}
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {
        "median": statistics.median(values),
        "p20": deciles[1],
        "p80": deciles[7],
        "n": len(values),
    }
