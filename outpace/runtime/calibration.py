"""This machine's measured rates, written by `outpace bench kernels`, from which a plan predicts its
speed.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.core.cache import cache_folder
from outpace.runtime.hardware import Machine

FORMAT = 1
MAPS = ("qkv", "proj", "fc", "mlp_proj", "head")
PASSES = ("forward", "dgrad", "wgrad")


@dataclass(frozen=True)
class Calibration:
    """Rates measured on this machine."""

    precision: str
    """Precision of the matrix products: no, bf16 or fp16."""
    date: str
    products: dict[str, float]
    """For each linear map, FLOP/s of its forward product and two gradient products together."""
    attention: float | None
    """FLOP/s of the fastest fused attention, forward and backward together."""
    bandwidth: float
    """Bytes per second of a copy, counting both reads and writes."""


def path(device: str, precision: str, threads: int) -> Path:
    """The file in the cache folder (`core/cache.py`): one per precision of the products, on a CPU
    also per number of threads."""
    where = f"cpu-{threads}" if device == "cpu" else device
    return cache_folder() / f"calibration-{where}-{precision}.json"


def read(machine: Machine, precision: str) -> Calibration | None:
    """The calibration of that machine in that precision with this process's number of threads. None
    if the file is missing, damaged, of another format or of another machine."""
    try:
        file = path(machine.device, precision, torch.get_num_threads())
        found = json.loads(file.read_text(encoding="utf-8"))
        if (found["format"], found["device_name"]) != (FORMAT, machine.device_name):
            return None
        attention = found.get("attention_flops_per_s")
        return Calibration(
            precision=str(found["precision"]),
            date=str(found["date"]),
            products={name: _together(found["gemm_flops_per_s"][name]) for name in MAPS},
            attention=None if attention is None else _rate(attention),
            bandwidth=_rate(found["copy_bytes_per_s"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _together(rates: dict[str, Any]) -> float:
    """The combined rate of three products with equal FLOPs."""
    return len(PASSES) / sum(1 / _rate(rates[which]) for which in PASSES)


def _rate(value: Any) -> float:
    rate = float(value)
    if not 0 < rate < math.inf:
        raise ValueError(f"{value} is not a rate")
    return rate
