"""What this machine is. Peaks are dense tensor-core FLOP/s of the vendor's data sheet; a machine
that is not in the table has no peak, and then no MFU is printed.
"""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

# Whole words of torch.cuda.get_device_name() -> (bf16/fp16 dense FLOP/s, source). First match wins.
PEAK_FLOPS: tuple[tuple[str, float, str], ...] = (
    ("H200", 989.4e12, "NVIDIA H200 data sheet, SXM"),
    ("H100 PCIe", 756e12, "NVIDIA H100 data sheet, PCIe"),
    ("H100 NVL", 835e12, "NVIDIA H100 data sheet, NVL"),
    ("GH200", 989.4e12, "NVIDIA GH200 data sheet"),
    ("H100", 989.4e12, "NVIDIA H100 data sheet, SXM"),
    ("B200", 2250e12, "NVIDIA B200 data sheet"),
    ("A100", 312e12, "NVIDIA A100 data sheet"),
    ("A800", 312e12, "NVIDIA A800 data sheet"),
    ("L40S", 362e12, "NVIDIA L40S data sheet"),
    ("L4", 121e12, "NVIDIA L4 data sheet"),
    ("A10G", 70e12, "NVIDIA A10G, AWS G5 figure"),
    ("A10", 125e12, "NVIDIA A10 data sheet"),
    ("V100", 125e12, "NVIDIA V100 data sheet, SXM, fp16"),
    ("T4", 65e12, "NVIDIA T4 data sheet, fp16"),
    ("RTX 4090", 165.2e12, "NVIDIA Ada architecture white paper, fp32 accumulate"),
    ("RTX 3090", 71e12, "NVIDIA Ampere GA102 white paper, fp32 accumulate"),
)


@dataclass(frozen=True)
class Machine:
    """Facts that the plan depends on; a plain value, so any machine can be planned for."""

    device: str
    """cpu or cuda."""
    device_name: str
    cores: int
    memory_bytes: int
    """All memory of the device that trains."""
    available_bytes: int
    """Memory that is free there now."""
    bf16: bool
    """Fast bf16 products: Ampere and later, or a CPU with avx512_bf16 or AMX."""
    peak_flops: float | None = None
    peak_source: str | None = None


def detect(device: str) -> Machine:
    """Describe this machine as seen by `device` (cpu or cuda)."""
    if device == "cuda":
        index = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        peak, source = peak_of(name)
        return Machine(
            device,
            name,
            os.cpu_count() or 1,
            total,
            free,
            torch.cuda.is_bf16_supported(including_emulation=False),
            peak,
            source,
        )
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    if limit := _cgroup_limit():
        total, free = min(total, limit), min(free, limit)
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Machine("cpu", _cpu_name(), _usable_cores(), total, free, bf16)


def peak_of(name: str) -> tuple[float | None, str | None]:
    """Peak FLOP/s of a GPU and its source, or None for one that is not in the table."""
    return next(
        ((p, s) for key, p, s in PEAK_FLOPS if re.search(rf"\b{re.escape(key)}\b", name)),
        (None, None),
    )


def memory_in_use(device: torch.device) -> int:
    """Peak bytes allocated on a GPU, or the peak resident size of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Largest resident size of this process so far (VmHWM on Linux, which can be set back)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if platform.system() == "Windows":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
