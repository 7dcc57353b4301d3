"""Where the time of a training step goes: the real `train_step` under torch.profiler, its operators
sorted into GPT-2's parts, each beside its floor.

The floor of a part is the least time that the roofline allows: its FLOPs at the rate of one large
product, or its least memory traffic at the rate of a copy. Both rates are measured in the same run.

On a GPU, the time of a part is that of its kernels, and the rest of the step is idle. On a CPU, it
is the self time of its operators, and the rest of the step is Python and dispatch.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from outpace.bench.kernels import COPY_BYTES, sustained_ms
from outpace.bench.profile_parts import Part, Roof, Shapes, table
from outpace.bench.result import check_writable, write_result
from outpace.core.errors import DataError, StorageError
from outpace.core.log import note, say, warn
from outpace.data.mixture import Mixture
from outpace.ops.fastest import synchronise
from outpace.runtime.hardware import detect
from outpace.runtime.precision import DTYPES
from outpace.train.assemble import make_loader
from outpace.train.plan import Plan
from outpace.train.step import Trainable, train_step

RATE_SECONDS = 0.5
SQUARE = {"cuda": 8192, "cpu": 2048}
"""Side of the square matrices whose product gives the roof."""


def profile_step(
    t: Trainable,
    plan: Plan,
    mixture: Mixture,
    *,
    steps: int,
    skip_steps: int,
    trace: Path,
    plot_path: Path,
    output: Path | None,
) -> Path:
    """Profile `steps` steps after `skip_steps`; write trace, plot and result. StorageError if one
    cannot be written, DataError if the dataset is too short."""
    device = t.device
    check_writable(f"profile-{device.type}", output)
    loader = make_loader(plan, mixture, 0, device)
    needed = (skip_steps + 2 * steps) * plan.tokens_per_step
    if needed > mixture.tokens("train"):
        raise DataError(
            "TOO-LITTLE-DATA",
            f"{needed:,} tokens are needed, but {mixture.where} has {mixture.tokens('train'):,}",
            do="choose fewer --steps, or a smaller --tokens_per_step",
        )
    batches = loader.steps(0, skip_steps + 2 * steps)
    with contextlib.closing(batches):
        for step in range(skip_steps):
            train_step(t, next(batches), step=step, lr=plan.lr)
        plain = [_timed(t, next(batches), skip_steps + i, plan.lr) for i in range(steps)]
        activities = [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
        with profile(activities=activities, record_shapes=True, acc_events=True) as recorded:
            profiled = [
                _timed(t, next(batches), skip_steps + steps + i, plan.lr) for i in range(steps)
            ]
    step_ms, roof = median(plain), measure_roof(device, plan.mixed_precision)
    profiled_ms = mean(profiled)  # the operators' times are means, too
    operators = [
        (event.key, event.input_shapes, _self_ms(event, device) / steps)
        for event in recorded.key_averages(group_by_input_shape=True)
    ]
    parts = table(plan, operators, profiled_ms, roof, device.type)
    speed = f"{1e3 * plan.tokens_per_step / step_ms:,.0f} tokens per second"
    _tell(parts, step_ms, profiled_ms, roof)
    body = {
        "settings": plan.record()["plan"],
        "dataset": {"name": mixture.name, "fingerprint": mixture.fingerprint},
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "steps": steps,
        "step_ms": step_ms,
        "step_ms_profiled": profiled_ms,
        "tokens_per_second": 1e3 * plan.tokens_per_step / step_ms,
        "flops_per_token": plan.flops_per_token,
        "mfu": _mfu(plan, step_ms, device.type),
        "roof": asdict(roof),
        "parts": [asdict(p) for p in parts],
        "operators": _slowest(operators),
    }
    path = write_result(f"profile-{device.type}", device.type, body, output)
    _write_trace(recorded, trace)  # after the result, so that an error here does not lose it
    say(f"trace {trace}: open it at https://ui.perfetto.dev")
    try:
        from outpace.bench.profile_plot import plot
    except ImportError as error:
        warn(f"no plot was made: {error}")
    else:
        plot(parts, f"One step of {plan.tokens_per_step:,} tokens, {speed}", plot_path)
        say(f"plot {plot_path}")
    return path


def measure_roof(device: torch.device, precision: str) -> Roof:
    """Measure the rates of a large square product and of a large copy."""
    n, dtype = SQUARE[device.type], DTYPES[precision]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product, _ = sustained_ms(lambda: torch.mm(a, b, out=out), RATE_SECONDS, device)
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy, _ = sustained_ms(lambda: target.copy_(source), RATE_SECONDS, device)
    return Roof(2e3 * n**3 / min(product), 2e3 * source.numel() / min(copy))


@contextlib.contextmanager
def named_kernels(device: torch.device) -> Iterator[None]:
    """Make the compiler's own CPU kernels appear in a profile by name. A GPU's always do, and a
    changed setting would miss the compiler's cache."""
    from torch._inductor import config

    with config.patch({"cpp.enable_kernel_profile": device.type == "cpu"}):
        yield


def _timed(t: Trainable, batches: Any, step: int, lr: float) -> float:
    synchronise(t.device)
    begin = time.perf_counter()
    train_step(t, batches, step=step, lr=lr)
    synchronise(t.device)
    return 1e3 * (time.perf_counter() - begin)


def _self_ms(event: Any, device: torch.device) -> float:
    """Self time of an operator in milliseconds: of its kernels, or of the CPU without the operators
    that it called. The profiler's and autograd's ranges around operators count as 0."""
    if device.type == "cuda":
        launched = event.device_type.name == "CPU"  # the kernels themselves are listed, too
        return float(event.self_device_time_total) / 1e3 if launched else 0.0
    computes = "fused" in event.key or ("::" in event.key and "autograd::" not in event.key)
    return float(event.self_cpu_time_total) / 1e3 if computes else 0.0


def _write_trace(recorded: Any, trace: Path) -> None:
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(trace))
        written = trace.is_file()
    except (OSError, RuntimeError) as error:
        raise StorageError(
            "TRACE", f"cannot write {trace}: {error}", do="choose another --trace"
        ) from error
    if not written:  # the profiler does not raise such an error
        raise StorageError("TRACE", f"cannot write {trace}", do="choose another --trace")


def _slowest(operators: list[tuple[str, Shapes, float]]) -> list[dict[str, Any]]:
    """The twenty slowest operators, for the result file."""
    by_time = sorted(operators, key=lambda o: -o[2])[:20]
    return [{"name": name[:160], "shapes": shapes, "ms": ms} for name, shapes, ms in by_time]


def _mfu(plan: Plan, step_ms: float, device: str) -> float | None:
    peak = detect(device).peak(plan.mixed_precision)
    return 1e3 * plan.tokens_per_step * plan.flops_per_token / step_ms / peak if peak else None


def _tell(parts: list[Part], step_ms: float, profiled_ms: float, roof: Roof) -> None:
    say(f"{'part':<28}{'ms':>10}{'share':>8}{'floor, ms':>12}{'over it':>9}  floor counts")
    for p in parts:
        floor = f"{p.floor_ms:>12,.2f}{p.ms / p.floor_ms:>8.1f}x" if p.floor_ms else " " * 21
        say(f"{p.name:<28}{p.ms:>10,.2f}{p.share:>8.1%}{floor}  {p.bound}")
    floors = sum(p.floor_ms or 0.0 for p in parts)
    say(f"{'step':<28}{profiled_ms:>10,.2f}{'':>8}{floors:>12,.2f}{profiled_ms / floors:>8.1f}x")
    note(
        f"without the profiler a step takes {step_ms:,.2f} ms; roof: "
        f"{roof.flops_per_s / 1e12:,.2f} TFLOP/s and {roof.bytes_per_s / 1e9:,.1f} GB/s"
    )
