"""What this process may use of its machine: the limits of the control groups that it is in, of
a container, a SLURM job, a systemd unit. cgroup v1 and v2 (kernel documentation,
cgroup-v1/memory.rst, scheduler/sched-bwc.rst and cgroup-v2.rst).
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, or as many as its groups' share of
    time is worth, rounded up."""
    cores = len(cores_to_run_on())
    with contextlib.suppress(OSError):
        cores = min([cores, *map(math.ceil, cpu_limits(GROUPS.read_text(), MOUNTED))])
    return max(1, cores)


def cores_to_run_on() -> list[int]:
    """Numbers of the cores of this process's affinity; where a system has none (macOS), all."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_limits(groups: str, root: Path) -> list[float]:
    """Cores' worth of time that each group with a limit may use. `groups` is the text of
    /proc/self/cgroup, `root` where the groups' file system is."""
    found = []
    for folder, is_v2 in _folders(groups, root, "cpu"):
        with contextlib.suppress(OSError, ValueError):  # `max`, or no limit at that level
            if is_v2:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota = int((folder / "cpu.cfs_quota_us").read_text())
                period = int((folder / "cpu.cfs_period_us").read_text())
            if quota > 0 and period > 0:  # -1: none
                found.append(quota / period)
    return found


def memory_limits(groups: str, root: Path = MOUNTED) -> list[tuple[int, int]]:
    """(limit, in use) in bytes of each group with a limit; v1 writes 2^63 for none. Arguments as of
    `cpu_limits`."""
    found = []
    for folder, is_v2 in _folders(groups, root, "memory"):
        limit = "memory.max" if is_v2 else "memory.limit_in_bytes"
        used = "memory.current" if is_v2 else "memory.usage_in_bytes"
        with contextlib.suppress(OSError, ValueError):
            number = int((folder / limit).read_text())
            found.append((number, int((folder / used).read_text())))
    return found


def _folders(groups: str, root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folder of each group, from the process's own up, and whether it is of v2. A container
    may see only the top one."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        here = top / path.strip("/")
        for folder in (here, *here.parents):
            yield folder, not controllers
            if folder == top:
                break
