"""Resources this process may use under the limits of its control groups (a container, a SLURM job,
a systemd unit). cgroup v1 and v2 (kernel documentation, cgroup-v1/memory.rst,
scheduler/sched-bwc.rst and cgroup-v2.rst).
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Number of cores this process may use: its affinity, or the CPU quota of its control groups
    rounded up, whichever is less."""
    cores = len(cores_to_run_on())
    with contextlib.suppress(OSError):
        cores = min([cores, *map(math.ceil, cpu_limits(GROUPS.read_text(), MOUNTED))])
    return max(1, cores)


def cores_to_run_on() -> list[int]:
    """The core numbers in this process's affinity; all cores where there is none (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_limits(groups: str, root: Path) -> list[float]:
    """The CPU quota, in cores, of each group with a limit. `groups` is the text of
    /proc/self/cgroup, `root` the mount point of the cgroup file system."""
    found = []
    for folder, is_v2 in _folders(groups, root, "cpu"):
        with contextlib.suppress(OSError, ValueError):  # `max`, or no limit at that level
            if is_v2:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota = int((folder / "cpu.cfs_quota_us").read_text())
                period = int((folder / "cpu.cfs_period_us").read_text())
            if quota > 0 and period > 0:  # -1: no limit
                found.append(quota / period)
    return found


def memory_limits(groups: str, root: Path = MOUNTED) -> list[tuple[int, int]]:
    """(limit, in use) in bytes of each group with a limit; v1 writes about 2^63 for no limit. What
    files were read fills the page cache up to the limit, and gives way: its inactive part is not in
    use, as `docker stats` counts. For the arguments see `cpu_limits`."""
    found = []
    for folder, is_v2 in _folders(groups, root, "memory"):
        limit = "memory.max" if is_v2 else "memory.limit_in_bytes"
        used = "memory.current" if is_v2 else "memory.usage_in_bytes"
        with contextlib.suppress(OSError, ValueError):
            number = int((folder / limit).read_text())
            in_use = int((folder / used).read_text()) - _inactive_cache(folder, is_v2)
            found.append((number, max(0, in_use)))
    return found


def _inactive_cache(folder: Path, is_v2: bool) -> int:
    wanted = "inactive_file" if is_v2 else "total_inactive_file"
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == wanted:
                return int(number)
    return 0


def _folders(groups: str, root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Each group's folder, from the process's own up to the root, and whether it belongs to v2. A
    container may see only the root."""
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
