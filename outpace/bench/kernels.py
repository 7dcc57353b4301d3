"""The speed that this machine sustains: the products of GPT-2's five linear maps forward and
backward, a copy, attention, cross-entropy and AdamW, each in a loop of seconds, so that clocks
settle.

    qkv (C -> 3C)   proj (C -> C)   fc (C -> 4C)   mlp_proj (4C -> C)   head (C -> V)

The rates are also this machine's calibration, from which `outpace plan` predicts.
"""

import datetime
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from outpace.bench.result import check_writable, spread, write_result
from outpace.config.presets import GPT2Shape
from outpace.core.crash import first_line, is_out_of_memory
from outpace.core.errors import StorageError
from outpace.core.files import replace_json
from outpace.core.log import say, warn
from outpace.core.units import GIB
from outpace.model.gpt2 import GPT2
from outpace.model.roofline import ADAMW_BYTES
from outpace.ops.attention import BACKENDS, MATERIALISING
from outpace.ops.cross_entropy import LOSSES
from outpace.ops.fastest import synchronise
from outpace.runtime import calibration
from outpace.runtime.driver import gpu_state
from outpace.runtime.hardware import Machine, detect
from outpace.runtime.precision import DTYPES

WINDOWS = 5
"""Parts of a loop; each is timed separately."""
COPY_BYTES = {"cuda": GIB, "cpu": GIB // 4}
"""Far larger than any cache."""
ADAMW: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for_loop": {"foreach": False},
}


@dataclass(frozen=True)
class Kernels:
    """The kernels to measure, and for how long."""

    shape: GPT2Shape
    tokens: int
    """Rows of the products (M), and tokens of attention and cross-entropy."""
    precision: str
    """no, bf16 or fp16."""
    seconds: float
    """Length of each loop."""
    device: torch.device
    parts: tuple[str, ...] = ("gemm", "copy", "attention", "cross_entropy", "adamw")
    calibrate: bool = True
    """Whether to keep the rates for `outpace plan`."""

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


Row = dict[str, Any]


def measure(k: Kernels, output: Path | None) -> Path:
    """Measure all parts, print, and write the result and the machine's calibration."""
    check_writable(f"kernels-{k.device.type}", output)
    machine = detect(k.device.type)
    peak = machine.peak(k.precision)
    body: dict[str, Any] = {
        "shape": asdict(k.shape),
        "tokens": k.tokens,
        "precision": k.precision,
        "seconds": k.seconds,
        "threads": torch.get_num_threads(),
        "gpu_before": gpu_state(k.device),
    }
    for part in k.parts:
        name, rows, computes = PARTS[part]
        body[part] = _told(name, rows(k), peak if computes else None)
        if part == "gemm":
            body["gpu_after_gemm"] = gpu_state(k.device)
        # After each part, so that an interrupted run keeps its results.
        path = write_result(f"kernels-{k.device.type}", k.device.type, body, output)
        if k.calibrate and {"gemm", "copy"} <= body.keys():
            _keep(calibration_of(body, machine))
    return path


def _keep(rates: dict[str, Any]) -> None:
    """Write the rates for `outpace plan`; only a warning if the cache folder is not writable."""
    path = calibration.path(rates["device"], rates["precision"], rates["threads"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, rates)
    except (OSError, StorageError) as error:
        warn(f"the calibration was not kept: {error}")


def linear_maps(shape: GPT2Shape) -> dict[str, tuple[int, int]]:
    """Channels that go into and come out of each linear map."""
    C, V = shape.n_embd, shape.padded_vocab_size
    maps = {"qkv": (C, 3 * C), "proj": (C, C), "fc": (C, 4 * C), "mlp_proj": (4 * C, C)}
    return maps | {"head": (C, V)}


def gemm_rows(k: Kernels) -> Iterator[Row]:
    """For each linear map: its forward product and the products of its two gradients."""
    M = k.tokens
    for name, (inside, outside) in linear_maps(k.shape).items():
        x, w = _random(k, M, inside), _random(k, outside, inside)
        y = _random(k, M, outside)
        passes = {
            "forward": partial(torch.mm, x, w.t(), out=torch.empty_like(y)),
            "dgrad": partial(torch.mm, y, w, out=torch.empty_like(x)),
            "wgrad": partial(torch.mm, y.t(), x, out=torch.empty_like(w)),
        }
        flops = 2 * M * inside * outside
        for which, run in passes.items():
            row = {"name": f"{name} {which}", "map": name, "pass": which}
            yield _timed(k, row, run, flops=flops)


def copy_rows(k: Kernels) -> Iterator[Row]:
    """A copy within the device's memory; a byte copied is read once and written once."""
    n = COPY_BYTES[k.device.type]
    source = torch.ones(n, dtype=torch.uint8, device=k.device)
    target = torch.empty_like(source)
    yield _timed(k, {"name": "copy"}, lambda: target.copy_(source), n_bytes=2 * n)


def attention_rows(k: Kernels) -> Iterator[Row]:
    """Every backend, forward and forward with backward. FLOPs count the causal half, and nothing
    twice: 2 T C per token forward, three times that with backward."""
    H, D, T = k.shape.n_head, k.shape.head_dim, k.shape.context
    B = max(1, k.tokens // T)
    forward_flops = 2 * B * T * T * H * D
    for name in BACKENDS.names():
        module = BACKENDS.load(name)
        if reason := module.why_not(k.device, k.dtype, D):
            yield {"name": name, "skipped": reason}
            continue
        # As in the model: views of one product (B, T, 3, H, D).
        qkv = _random(k, B, T, 3, H, D).requires_grad_()
        grad = _random(k, B, H, T, D)
        kernel = module.kernel(k.device, k.dtype, D, 0.0)
        for which, given, factor in (("forward", None, 1), ("forward and backward", grad, 3)):
            row = {"name": f"{name} {which}", "backend": name, "pass": which, "kernel": kernel}
            run = partial(_attention, module.attend, qkv, given)
            yield _timed(k, row, run, flops=factor * forward_flops)


def _attention(
    attend: Callable[..., torch.Tensor], qkv: torch.Tensor, grad: torch.Tensor | None
) -> None:
    """Attention forward and, with the gradient of its output, backward."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, T, D)
    out = attend(q, k, v, dropout_p=0.0)
    if grad is not None:
        torch.autograd.grad(out, qkv, grad)


def cross_entropy_rows(k: Kernels) -> Iterator[Row]:
    """Every implementation of head and loss, forward and backward, weights in fp32 as in training.
    FLOPs are those of the head's three products."""
    C, V, N = k.shape.n_embd, k.shape.padded_vocab_size, k.tokens
    hidden = _random(k, N, C).requires_grad_()
    weight = torch.randn(V, C, device=k.device).mul_(0.02).requires_grad_()
    targets = torch.randint(k.shape.vocab_size, (N,), device=k.device)
    for name in LOSSES.names():
        module = LOSSES.load(name)
        if reason := module.why_not(k.device, k.dtype, False):
            yield {"name": name, "skipped": reason}
            continue

        def both(module: Any = module) -> None:
            enabled = k.precision != "no"
            with torch.autocast(k.device.type, k.dtype if enabled else None, enabled=enabled):
                loss = module.loss_sum(hidden, weight, targets, k.shape.vocab_size)
            torch.autograd.grad(loss / N, (hidden, weight))

        yield _timed(k, {"name": name}, both, flops=6 * N * C * V, memory=True)


def adamw_rows(k: Kernels) -> Iterator[Row]:
    """PyTorch's three implementations over the model's own parameters, fp32."""
    with torch.device("meta"):
        sizes = [p.shape for p in GPT2(k.shape).parameters()]
    parameters = [torch.zeros(size, device=k.device, requires_grad=True) for size in sizes]
    for p in parameters:
        p.grad = torch.ones_like(p)
    n_bytes = ADAMW_BYTES["adamw"] * sum(p.numel() for p in parameters)
    for name, how in ADAMW.items():
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, **how)
        yield _timed(k, {"name": name}, optimizer.step, n_bytes=n_bytes)
        del optimizer


PARTS: dict[str, tuple[str, Callable[[Kernels], Iterator[Row]], bool]] = {
    "gemm": ("products", gemm_rows, True),
    "copy": ("copy", copy_rows, False),
    "attention": ("attention", attention_rows, True),
    "cross_entropy": ("head and cross-entropy, forward and backward", cross_entropy_rows, True),
    "adamw": ("AdamW", adamw_rows, False),
}
"""Part -> its title, its rows, and whether to compare them with the peak FLOP/s."""


def calibration_of(body: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The file that `outpace plan` reads: rates of the products and of the fastest fused attention,
    forward and backward (FLOP/s), and of a copy (bytes/s)."""
    gemm: dict[str, dict[str, float]] = {}
    for row in body["gemm"]:
        if "flops_per_s" in row:
            gemm.setdefault(row["map"], {})[row["pass"]] = row["flops_per_s"]
    (copy,) = body["copy"]
    attention = [
        row["flops_per_s"]
        for row in body.get("attention", [])
        if row.get("pass") == "forward and backward"
        and row["backend"] not in MATERIALISING
        and "flops_per_s" in row
    ]
    return {
        "format": calibration.FORMAT,
        "device": machine.device,
        "device_name": machine.device_name,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "threads": body["threads"],
        "precision": body["precision"],
        "tokens": body["tokens"],
        "gemm_flops_per_s": gemm,
        "attention_flops_per_s": max(attention, default=None),
        "copy_bytes_per_s": copy.get("bytes_per_s"),
    }


def _timed(
    k: Kernels,
    row: Row,
    run: Callable[[], object],
    *,
    flops: float = 0.0,
    n_bytes: float = 0.0,
    memory: bool = False,
) -> Row:
    """`row` with the sustained time of one call of `run` and the rates that follow from it; or with
    the reason why it was `skipped`."""
    try:
        ms, allocated = sustained_ms(run, k.seconds, k.device)
    except Exception as error:  # compilers' and kernels' failures have no common type
        gc.collect()
        if not is_out_of_memory(error):
            return row | {"skipped": f"it failed: {first_line(error)}"}
        return row | {"skipped": "it does not fit in memory"}
    row = row | {"ms": spread(ms)}
    per_s = 1e3 / row["ms"]["median"]
    if flops:
        row["flops_per_s"] = flops * per_s
    if n_bytes:
        row["bytes_per_s"] = n_bytes * per_s
    if memory and k.device.type == "cuda":
        row["peak_memory_bytes"] = allocated
    return row


def sustained_ms(
    run: Callable[[], object], seconds: float, device: torch.device
) -> tuple[list[float], int]:
    """Milliseconds per call in each of WINDOWS windows of a loop of `seconds`, after a warm-up as
    long as one window; and the peak bytes that a call allocates (CUDA)."""
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    run()  # compiles, chooses kernels, makes the optimiser's state
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    calls = max(1, round(seconds / WINDOWS / max(1e-6, time.perf_counter() - begin)))
    ms = []
    for _ in range(1 + WINDOWS):
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        synchronise(device)
        ms.append(1e3 * (time.perf_counter() - begin) / calls)
    allocated = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    return ms[1:], allocated


def _random(k: Kernels, *size: int) -> torch.Tensor:
    """Normal random numbers, since power, and so clocks, depend on how many bits change."""
    return torch.randn(size, device=k.device, dtype=k.dtype)


def _told(what: str, rows: Iterator[Row], peak: float | None) -> list[Row]:
    """The rows as a list, each printed as it comes."""
    kept = []
    say(what)
    for row in rows:
        kept.append(row)
        if "skipped" in row:
            say(f"  {row['name']:<36} left out: {row['skipped']}")
            continue
        text = f"  {row['name']:<36}{row['ms']['median']:>12,.3f} ms"
        if flops := row.get("flops_per_s"):
            text += f"{flops / 1e12:>10,.2f} TFLOP/s"
            text += f" {flops / peak:>6.1%} of the data sheet" if peak else ""
        if n := row.get("bytes_per_s"):
            text += f"{n / 1e9:>10,.1f} GB/s"
        say(text)
    return kept
