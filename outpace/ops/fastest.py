"""Which of several implementations is fastest on this machine: measured once, then remembered.

Remembered in `kernels.json` in the cache folder (`core/cache.py`), under the machine, PyTorch's
version, type, shape and candidates. It may be deleted at any time.
"""

import contextlib
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from outpace.core import locks
from outpace.core.cache import cache_folder
from outpace.core.crash import first_line
from outpace.core.errors import OutpaceError
from outpace.core.files import replace_json

Work = Callable[[], Sequence[torch.Tensor]]
"""A forward and backward of one candidate, on the same inputs each time: output and gradients."""

TURN_S = 300.0
"""Patience with another process that measures: candidates may have to be compiled."""
WARM_UP, ROUNDS = 3, 10
CALLS = 4
"""Timed together: from the second on, what the host does hides behind what the device does."""
TIE = 0.02
"""Within 2% the earlier candidate wins: the noise of a measurement should not pick a kernel."""
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Relative error that still agrees. Wide (fp32 includes TF32): it finds wrong kernels, not coarse
ones; the tests have the tight limits."""


@dataclass
class Measured:
    """What one comparison found."""

    choice: str
    ms: dict[str, float]
    """Median time of forward and backward, of the candidates that ran and agreed."""
    excluded: dict[str, str] = field(default_factory=dict)
    """The others, and what was wrong with them."""
    date: str = ""

    def reason(self) -> str:
        """For example `fastest of cudnn 1.9 ms, flash 2.4 ms, measured here on 2026-11-24`."""
        by_time = sorted(self.ms, key=lambda name: self.ms[name])
        times = ", ".join(f"{name} {self.ms[name]:.3g} ms" for name in by_time)
        out = "".join(f"; {name} left out: {why}" for name, why in self.excluded.items())
        return f"fastest of {times}, measured here on {self.date}{out}"


def fastest(
    kind: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: dict[str, int],
    names: Sequence[str],
    prepare: Callable[[], tuple[Work, dict[str, Work]]],
    tolerance: float | None = None,
) -> Measured | None:
    """The fastest of the candidates `names`, from the cache or measured now. Only a measurement
    calls `prepare`, which returns the reference, which is not timed, and the candidates in order of
    preference. `tolerance` bounds the relative error (default: TOLERANCE of the dtype). None if no
    candidate ran and agreed with the reference."""
    sizes = " ".join(f"{letter}={n}" for letter, n in shape.items())
    key = f"{kind} | {device_name(device)} | torch {torch.__version__} | {dtype} {sizes} | "
    key += " ".join(names)
    path = cache_folder() / "kernels.json"
    if (known := _parse(_read(path).get(key))) is not None:
        return known
    with _one_at_a_time(path):
        if (known := _parse(_read(path).get(key))) is not None:
            return known
        try:
            found = measure(*prepare(), device, tolerance or TOLERANCE[dtype])
        except torch.OutOfMemoryError:  # no room beside what is already allocated
            found = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)  # not part of the run's own peak
        if found is not None:
            _write(path, _read(path) | {key: asdict(found)})
    return found


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """One process of a host measures at a time: together they would disturb each other, and all
    must choose the same. A process that waits too long, or cannot lock, measures anyway."""
    lock = None
    with contextlib.suppress(Timeout, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = locks.take(path.with_name(".kernels.lock"), TURN_S)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def measure(
    reference: Work, candidates: dict[str, Work], device: torch.device, tolerance: float
) -> Measured | None:
    """Time the candidates in turns, so that a change of clock speed affects all alike."""
    expected = [x.detach() for x in reference()]
    excluded = {}
    for name, work in candidates.items():
        try:
            for _ in range(WARM_UP):
                results = work()
            synchronise(device)
        except torch.OutOfMemoryError:  # says nothing about the kernel: do not remember it
            raise
        except Exception as error:  # a kernel may fail in any way; the others remain
            excluded[name] = first_line(error)[:120]
            continue
        worst = max(_error(x, e) for x, e in zip(results, expected, strict=True))
        if not worst <= tolerance:
            excluded[name] = f"wrong by {worst:.1%}"
    ran = {name: work for name, work in candidates.items() if name not in excluded}
    if not ran:
        return None
    seconds: dict[str, list[float]] = {name: [] for name in ran}
    for _ in range(ROUNDS):
        for name, work in ran.items():
            synchronise(device)
            began = time.perf_counter()
            for _ in range(CALLS):
                work()
            synchronise(device)
            seconds[name].append((time.perf_counter() - began) / CALLS)
    ms = {name: 1e3 * statistics.median(s) for name, s in seconds.items()}
    limit = min(ms.values()) * (1 + TIE)
    choice = next(name for name in ms if ms[name] <= limit)
    return Measured(choice, ms, excluded, datetime.date.today().isoformat())


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished all its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"


def _error(x: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the 2-norm; NaN if x contains one."""
    difference = (x.detach().float() - expected.float()).norm()
    return float(difference / expected.float().norm().clamp_min(1e-12))


def _read(path: Path) -> dict[str, Any]:
    """The remembered measurements; none if the file is missing, damaged or not ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _parse(entry: object) -> Measured | None:
    try:
        found = Measured(**entry)  # type: ignore[arg-type]
        found.reason()
    except (TypeError, AttributeError, KeyError, ValueError):
        return None
    return found if found.choice in found.ms else None


def _write(path: Path, content: dict[str, Any]) -> None:
    """Remember if possible: with a read-only cache folder every run measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, content)
    except (OSError, OutpaceError):
        return
