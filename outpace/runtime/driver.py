"""A GPU's clocks, power and temperature as reported by nvidia-smi, if installed; and the version of
cuDNN.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from outpace.core.log import warn

QUERY = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
    "utilisation_percent": "utilization.gpu",
    "throttle_reasons": "clocks_throttle_reasons.active",
}
"""Our name for each field of `nvidia-smi --help-query-gpu`. Throttle reasons are a bit mask."""
TIMEOUT_S = 5.0
DEVICES = Path("/dev")

State = dict[str, float | str | None]


def unusable_gpu() -> tuple[str, str] | None:
    """Why PyTorch cannot use this machine's NVIDIA GPU, and the remedy. None if there is no GPU,
    PyTorch can use it, or CUDA_VISIBLE_DEVICES hides it."""
    if torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    under_wsl = Path("/dev/dxg").exists() and shutil.which("nvidia-smi") is not None
    if not under_wsl and not any(DEVICES.glob("nvidia[0-9]*")):
        return None
    if torch.version.cuda is None:
        do = "install torch with CUDA: the index of its wheels is on pytorch.org"
        return "this torch is built for CPUs", do
    driver = driver_version() or "(which does not answer)"
    do = f"install one for CUDA {torch.version.cuda}, or a torch for that driver's CUDA, or look "
    do += "at CUDA_VISIBLE_DEVICES"
    return f"its driver {driver} does not serve this torch", do


def gpu_state(device: torch.device) -> State | None:
    """The state of a GPU now, with None for a field that the driver does not report. None on a CPU,
    or if nvidia-smi is missing or does not answer."""
    if device.type != "cuda":
        return None
    return ask(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


@contextlib.contextmanager
def state_amid(device: torch.device, seconds: float) -> Iterator[list[State]]:
    """The state of a GPU `seconds` from now, while the body still runs: an idle GPU reports other
    clocks. The list stays empty if the body ends sooner or `gpu_state` is None."""
    found: list[State] = []

    def look() -> None:
        if (state := gpu_state(device)) is not None:
            found.append(state)

    timer = threading.Timer(seconds, look)
    timer.start()
    try:
        yield found
    finally:
        timer.cancel()
        timer.join()


def ask(gpu: str) -> State | None:
    """Query nvidia-smi for a GPU by UUID, which CUDA_VISIBLE_DEVICES does not renumber."""
    values = _query([*QUERY.values()], f"--id={gpu}")
    if len(values) != len(QUERY):
        return None
    return dict(zip(QUERY, map(_value, values), strict=True))


def driver_version() -> str | None:
    """The driver version, such as 580.65.06, the same for all GPUs; None if nvidia-smi does not
    report it."""
    return next(iter(_query(["driver_version"])), None)


@functools.cache
def cudnn_version() -> int | str | None:
    """PyTorch's cuDNN version, such as 92000; None in a build without CUDA. If the loader finds an
    incompatible cuDNN first: PyTorch's message, after a warning, because only cuDNN attention needs
    it, which `auto` tries."""
    try:
        return torch.backends.cudnn.version() if torch.version.cuda else None
    except RuntimeError as error:
        found = " ".join(str(error).split(". ")[0].split())
        warn(f"{found}; continuing without it. Unset LD_LIBRARY_PATH to use PyTorch's own")
        return found


def _query(fields: list[str], *gpu: str) -> list[str]:
    """nvidia-smi's answer for the (first) GPU, one value per field; empty if there is no answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, *gpu, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = answer.stdout.splitlines()
    return lines[0].strip().split(", ") if lines else []


def _value(text: str) -> float | str | None:
    """Parse a number; a bit mask stays text; None for `[N/A]` and the like."""
    if text.startswith("["):
        return None
    try:
        return float(text)
    except ValueError:
        return text
