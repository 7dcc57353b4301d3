"""Memory of large tensors on a CPU: huge pages, and no return to the system.

A step of GPT-2 allocates several gigabytes, mostly logits. With pages of 4 KiB the kernel clears
and maps them one by one: a copy of 206 MB takes 173 ms, with pages of 2 MiB 49 ms (Zen 3, torch
2.13). PyTorch asks for huge pages (`madvise`) if THP_MEM_ALLOC_ENABLE is set at its first
allocation (c10/core/impl/alloc_cpu.cpp). Also, glibc returns every large block to the system at
once and asks for it again a moment later, when the kernel may first have to move other pages: a
fifth of a step's time, and half a second of jitter (docs/lab-log.md).
"""

import ctypes
import os

import torch

SWITCH = "THP_MEM_ALLOC_ENABLE"

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def use_huge_pages() -> None:
    """Use huge pages for tensors from now on, if this process has not made any tensor yet. A user's
    own setting stays. The variable does not stay in the environment, where our child processes
    would inherit it."""
    if SWITCH in os.environ:
        return
    os.environ[SWITCH] = "1"
    torch.empty(1)  # the switch is read once
    del os.environ[SWITCH]


def keep_memory() -> None:
    """Keep freed memory in this process for its next tensors (glibc only). Threads other than the
    first still use mmap for blocks larger than their heaps of 64 MiB."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
