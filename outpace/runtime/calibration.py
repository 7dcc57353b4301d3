"""This machine's own rates, as `outpace bench kernels` left them: what a plan predicts from."""

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
    """Rates that were measured here."""

    precision: str
    """Of the products: no, bf16 or fp16."""
    date: str
    products: dict[str, float]
    """FLOP/s of each linear map's product forward and its two gradients, together."""
    attention: float | None
    """FLOP/s of the fastest fused attention, forward and backward."""
    bandwidth: float
    """Bytes a second of a copy, read and written."""


def path(device: str, precision: str, threads: int) -> Path:
    """The file in the cache folder (`core/cache.py`): one for each precision of the products, on a
    CPU also for each number of threads."""
    where = f"cpu-{threads}" if device == "cpu" else device
    return cache_folder() / f"calibration-{where}-{precision}.json"


def read(machine: Machine, precision: str) -> Calibration | None:
    """What was measured on that machine in that precision and with this process's threads, or None
    where there is nothing that holds: no file, one that is damaged, of another format or of
    another machine."""
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
    """The rate of three products of equally many FLOPs, one after the other."""
    return len(PASSES) / sum(1 / _rate(rates[which]) for which in PASSES)


def _rate(value: Any) -> float:
    rate = float(value)
    if not 0 < rate < math.inf:
        raise ValueError(f"{value} is no rate")
    return rate
