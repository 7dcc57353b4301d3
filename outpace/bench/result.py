"""Result files: each holds its command, its measurements, the machine and the versions."""

import contextlib
import datetime
import functools
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core import files
from outpace.core.files import replace_json, storage_error
from outpace.core.secrets import redact
from outpace.runtime.driver import driver_version
from outpace.runtime.hardware import detect
from outpace.train.environment import versions

RESULTS = Path("results")
BESIDE = ("triton", "transformers", "datasets", "lm_eval", "fastokens", "flash_attn")
"""Packages on which some results depend; their versions are recorded if they are installed."""


def check_writable(name: str, output: Path | None) -> None:
    """Called before anything is measured; StorageError if the result could not be written."""
    files.check_writable(_path(name, output))


def write_result(name: str, device: str, body: dict[str, Any], output: Path | None = None) -> Path:
    """Write `body` with command, machine and versions to `output`, by default results/NAME.json."""
    path = _path(name, output)
    machine = vars(detect(device)) | {"available_bytes": None}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    made: dict[str, Any] = {"benchmark": name, "command": command_line(), "date": date}
    made |= {"machine": machine, "versions": _versions(device)}
    replace_json(path, made | body)
    return path


def command_line() -> str:
    """The command as typed, so that a reader can repeat it; paths below the current folder are made
    relative, secrets are redacted."""
    program = Path(sys.argv[0])
    script = program.name if program.is_absolute() else str(program)
    typed = ["outpace"] if program.name in ("outpace", "__main__.py") else ["python", script]
    here = f"{Path.cwd()}/"
    return redact(shlex.join([*typed, *(word.removeprefix(here) for word in sys.argv[1:])]))


def _versions(device: str) -> dict[str, str]:
    found = versions()
    for package in BESIDE:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if device == "cuda" and (driver := _driver()):
        found["driver"] = driver
    return found


_driver = functools.cache(driver_version)


def _path(name: str, output: Path | None) -> Path:
    """The path of the result; makes its folder."""
    path = output or RESULTS / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    return path


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, and number of values."""
    p20, median, p80 = np.percentile(values or [np.nan], (20, 50, 80)).tolist()
    return {"median": median, "p20": p20, "p80": p80, "n": len(values)}
