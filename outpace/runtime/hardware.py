"""Describing this machine. Peaks come from `machines.py`; for a machine that is not in that table
no MFU is printed.
"""

import contextlib
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from outpace.core.limits import GROUPS, memory_limits, usable_cores
from outpace.runtime.machines import by_device_name


@dataclass(frozen=True)
class Machine:
    """Facts that the plan depends on. A plain value, so that any machine can be planned for."""

    device: str
    """cpu or cuda."""
    device_name: str
    cores: int
    memory_bytes: int
    """Total memory of the training device."""
    available_bytes: int
    """Memory free on that device now."""
    bf16: bool
    """Fast bf16 products: Ampere and later, or a CPU with avx512_bf16 or AMX."""
    peak_flops: float | None = None
    """FLOP/s of half-precision products; None where no data sheet is known."""
    peak_source: str | None = None

    def peak(self, precision: str) -> float | None:
        """The peak that an MFU in that precision refers to; None for fp32, which has another
        peak."""
        return None if precision == "no" else self.peak_flops


def detect(device: str) -> Machine:
    """Describe this machine as seen by `device` (cpu or cuda)."""
    if device == "cuda":
        index = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        gpu = by_device_name(name)
        return Machine(
            device,
            name,
            usable_cores(),
            total,
            free,
            torch.cuda.is_bf16_supported(including_emulation=False),
            gpu.half if gpu else None,
            gpu.source if gpu else None,
        )
    total, free = host_memory()
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Machine("cpu", _cpu_name(), usable_cores(), total, free, bf16)


def host_memory() -> tuple[int, int]:
    """Bytes of host memory in all, and free, that this process may use."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    with contextlib.suppress(OSError):
        for limit, used in memory_limits(GROUPS.read_text()):
            if limit < memory.total:  # cgroup v1 writes 2^63 for no limit
                total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def memory_in_use(device: torch.device) -> int:
    """Peak bytes allocated on a GPU, or the peak resident size of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Peak resident size of this process."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return high_water_mark() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def high_water_mark(process: int | str = "self") -> int | None:
    """Peak resident size of a process in bytes, from Linux, where it can be reset."""
    mark = _proc_field(Path(f"/proc/{process}/status"), "VmHWM")
    return int(mark.removesuffix("kB")) * 1024 if mark else None


def _cpu_name() -> str:
    model = _proc_field(Path("/proc/cpuinfo"), "model name")
    return model or platform.processor() or platform.machine()


def _proc_field(file: Path, what: str) -> str:
    """The value of the first `WHAT :` line of a /proc file; empty if there is none."""
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(what):
                return line.partition(":")[2].strip()
    return ""
