"""Memory of large tensors on a CPU: in huge pages, and kept.

A step of GPT-2 allocates some gigabytes anew, most of it logits. In pages of 4 KiB the kernel
clears and maps them one by one: a copy of 206 MB takes 173 ms, in pages of 2 MiB 49 ms (Zen 3,
torch 2.13). PyTorch asks for them (`madvise`) where THP_MEM_ALLOC_ENABLE is set when it allocates
for the first time (c10/core/impl/alloc_cpu.cpp). And glibc gives every large block back at once,
to ask for it again a moment later, when the kernel may first have to move others' pages: a fifth
of a step's time, and half a second of jitter (docs/lab-log.md).
"""

import ctypes
import os

import torch

SWITCH = "THP_MEM_ALLOC_ENABLE"

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def use_huge_pages() -> None:
    """From now on, if no tensor was made in this process yet; a user's own setting stays. It is not
    left in the environment, for other programs that we start."""
    if SWITCH in os.environ:
        return
    os.environ[SWITCH] = "1"
    torch.empty(1)  # the switch is read once
    del os.environ[SWITCH]


def keep_memory() -> None:
    """What is freed from now on stays this process's, for its next tensors (glibc only). Other
    threads than the first still map what is larger than their heaps' 64 MiB."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
