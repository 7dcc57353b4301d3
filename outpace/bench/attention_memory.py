"""Peak memory of attention, forward and backward, by sequence length. Each point is measured in a
fresh process, because a process never shrinks below its own peak. The exponent is the slope of log
memory over log length: 1 is linear, 2 is quadratic.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from outpace.core.crash import OUT_OF_MEMORY_TEXTS, last_error
from outpace.core.errors import OutOfMemory, OutpaceError
from outpace.core.log import note, say
from outpace.core.units import MIB
from outpace.ops.attention import BACKENDS
from outpace.runtime.hardware import memory_in_use
from outpace.runtime.precision import DTYPES, precision_name

Row = dict[str, Any]

PRECISION = {"cpu": "no", "cuda": "bf16"}
"""The precision of training there: the kernels of FlashAttention and cuDNN have no fp32."""


def measure(
    lengths: tuple[int, ...],
    heads: int,
    head_dim: int,
    where: torch.device,
    backends: Sequence[str] = tuple(BACKENDS.names()),
    keep: Callable[[Row], object] = lambda _: None,
) -> Row:
    """Measure the backends at every length, print a table and return the result. `keep` is called
    with the result so far after each backend."""
    rows: dict[str, list[Row]] = {}
    precision = PRECISION[where.type]
    for backend in backends:
        if reason := BACKENDS.load(backend).why_not(where, DTYPES[precision], head_dim):
            note(f"{backend} is left out: {reason}")
            continue
        rows[backend] = [_in_new_process(backend, T, heads, head_dim, where.type) for T in lengths]
        keep(_body(rows, heads, head_dim, precision))
    body = _body(rows, heads, head_dim, precision)
    _tell(lengths, rows, body["exponents"])
    return body


def _body(rows: dict[str, list[Row]], heads: int, head_dim: int, precision: str) -> Row:
    exponents = {name: _exponent(points) for name, points in rows.items()}
    return {
        "heads": heads,
        "head_dim": head_dim,
        "batch": 1,
        "dtype": precision_name(precision),
        "results": rows,
        "exponents": exponents,
    }


def _tell(lengths: tuple[int, ...], rows: dict[str, list[Row]], exponents: Row) -> None:
    say("T        " + "".join(f"{name:>16}" for name in rows))
    for i, T in enumerate(lengths):
        say(
            f"{T:<9}"
            + "".join(f"{points[i]['bytes'] / MIB:>12.1f} MiB" for points in rows.values())
        )
    say("exponent " + "".join(f"{exponents[name]:>16.2f}" for name in rows))


def point(backend: str, T: int, heads: int, head_dim: int, device: str) -> dict[str, Any]:
    """Peak bytes that one forward and backward pass adds, measured in this process."""
    where, dtype = torch.device(device), DTYPES[PRECISION[device]]
    module = BACKENDS.load(backend)

    def run(length: int) -> None:
        q, k, v = (
            torch.ones(1, heads, length, head_dim, device=where, dtype=dtype, requires_grad=True)
            for _ in range(3)
        )
        module.attend(q, k, v).sum().backward()

    # Libraries, thread pools and the compiler allocate their memory before the measurement. On a
    # CPU the process keeps what this run allocates, so it must be small.
    run(T if where.type == "cuda" else 16)
    before = _in_use_now(where)
    run(T)
    return {
        "tokens": T,
        "bytes": memory_in_use(where) - before,
        "kernel": module.kernel(where, dtype, head_dim, 0.0),
    }


def _in_use_now(device: torch.device) -> int:
    """Bytes in use; resets the peak that `memory_in_use` reports to this value."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: proc(5)
    return int(psutil.Process().memory_info().rss)


def _in_new_process(backend: str, T: int, heads: int, head_dim: int, device: str) -> dict[str, Any]:
    call = f"point({backend!r}, {T}, {heads}, {head_dim}, {device!r})"
    # PyTorch 2.13 may abort if a process ends right after its first backward pass on a GPU.
    code = (
        f"import json, os; from {__name__} import point; "
        f"print(json.dumps({call}), flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        said = last_error(done.stderr)[:120] or f"it ended with {done.returncode}"
        killed = done.returncode == -9  # SIGKILL, by Linux when memory is short
        if killed or any(text in said.lower() for text in OUT_OF_MEMORY_TEXTS):
            raise OutOfMemory(
                "MEMORY",
                f"{backend} at {T} tokens did not fit ({said})",
                do="choose shorter --lengths",
            )
        raise OutpaceError(
            "POINT-FAILED",
            f"{backend} at {T} tokens failed: {said}",
            do="measure the step alone, with --parts step",
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _exponent(points: list[dict[str, Any]]) -> float:
    """Least-squares slope of log bytes over log tokens, over the upper half of the lengths."""
    upper = points[len(points) // 2 :] if len(points) > 3 else points
    xs = [math.log(p["tokens"]) for p in upper]
    ys = [math.log(max(1, p["bytes"])) for p in upper]
    return statistics.linear_regression(xs, ys).slope if len(set(xs)) > 1 else 0.0
