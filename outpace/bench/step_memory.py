"""Peak memory of a training step in three ways: by the formula from which a plan chooses the
micro-batch, counted under fake tensors, and measured on a GPU.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from outpace.bench.memory_tracker import step_on, tracked_peak
from outpace.config.presets import GPT2Shape
from outpace.core.crash import first_line, is_out_of_memory
from outpace.core.log import say
from outpace.core.units import GIB
from outpace.model.memory import WORKSPACE, StepSettings, training_memory
from outpace.ops.cross_entropy import LOSSES
from outpace.runtime.precision import DTYPES

Row = dict[str, Any]

NAIVE: Row = {"precision": "no", "attention": "eager", "optimizer": "adamw_foreach"}
SETTINGS: dict[str, Row] = {
    "fp32, T x T matrix, foreach AdamW": NAIVE,
    "fp32": {"precision": "no"},
    "bf16, T x T matrix": {"attention": "eager"},
    "bf16": {},
    "bf16, bf16 residual": {"bf16_residual": True},
    "  + loss in place": {"bf16_residual": True, "cross_entropy": "triton"},
    "  + chunked loss": {"bf16_residual": True, "cross_entropy": "chunked"},
    "  + PyTorch's chunked loss": {"bf16_residual": True, "cross_entropy": "linear"},
    "  + chunked loss, GELU again": {
        "bf16_residual": True, "cross_entropy": "chunked", "checkpointing": "gelu",
    },
    "  + chunked loss, blocks again": {
        "bf16_residual": True, "cross_entropy": "chunked", "checkpointing": "block",
    },
    "bf16, no accumulation": {"accumulates": False},
    "compiled": {"compiled": True, "cross_entropy": "compiled", "bf16_residual": True},
    "compiled, loss in place": {
        "compiled": True, "cross_entropy": "triton", "bf16_residual": True,
    },
    "compiled, in place, fp8 head": {
        "compiled": True, "cross_entropy": "triton", "bf16_residual": True, "fp8_head": True,
    },
}  # fmt: skip


def rows(
    shape: GPT2Shape,
    micro_batch_size: int,
    device: torch.device,
    run: bool,
    keep: Callable[[list[Row]], object] = lambda _: None,
) -> list[Row]:
    """The peak of every setting in bytes. Each is printed at once, then `keep` is called with all
    so far. With `run`, peaks are also measured if `device` is a GPU."""
    run = run and device.type == "cuda"
    say(f"{'a training step, GiB':<36}{'formula':>10}{'counted':>10}{'measured':>10}")
    found = []
    for row in _rows(shape, micro_batch_size, device, run):
        found.append(row)
        values = (row[key] for key in ("formula_bytes", "counted_bytes", "measured_bytes"))
        cells = ("" if v is None else f"{v / GIB:.3f}" for v in values)
        say(f"{row['name']:<36}" + "".join(f"{cell:>10}" for cell in cells))
        keep(found)
    return found


def _rows(shape: GPT2Shape, size: int, device: torch.device, run: bool) -> Iterator[Row]:
    for name, changes in SETTINGS.items():
        s = StepSettings(shape, **changes)
        gpu, dtype = torch.device("cuda"), DTYPES[s.precision]
        # Triton's loss can be counted without Triton.
        if s.cross_entropy != "triton" and LOSSES.load(s.cross_entropy).why_not(gpu, dtype, True):
            continue
        formula = training_memory(s)
        peak = formula.at(size * shape.context)
        yield {
            "name": name,
            "settings": {k: v for k, v in vars(s).items() if k != "shape"},
            "formula_bytes": peak.bytes(size * shape.context),
            "peak_at": peak.name,
            # Counted are tensors alone: add the workspace. Tensors that the compiler fuses away
            # would be counted, too.
            "counted_bytes": None if s.compiled else tracked_peak(s, size) + WORKSPACE,
            "measured_bytes": measured_peak(s, size, device) if run and _computes(s) else None,
        }


def _computes(s: StepSettings) -> bool:
    """Whether this GPU supports that type; PyTorch emulates bf16, with another memory use."""
    return s.precision == "no" or torch.cuda.is_bf16_supported(including_emulation=False)


def measured_peak(s: StepSettings, size: int, device: torch.device) -> int | None:
    """Peak bytes that PyTorch's allocator handed out in a step on a GPU; None if the step does not
    fit or cannot run."""
    try:
        step = step_on(device, replace(s, device=device.type), size)
        step()  # compiles, and makes the moments
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    except Exception as error:  # the compilers' failures have no common type
        if not is_out_of_memory(error) and not isinstance(error, ImportError):
            say(f"{'':<4}not measured: {first_line(error)[:80]}")
        return None
    finally:
        step = None  # type: ignore[assignment]
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()
