"""Large tensors lie in huge pages, their memory is used again, nobody's environment changes."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import os, re, torch
from outpace.runtime.cpu_memory import use_huge_pages
if {on}: use_huge_pages()
x = torch.ones(64 << 20, dtype=torch.uint8)
text = open("/proc/self/smaps_rollup").read()
size = int(re.search(r"AnonHugePages: +(\\d+) kB", text)[1]) >> 10
print(size, "THP_MEM_ALLOC_ENABLE" in os.environ)
"""


@pytest.mark.skipif(
    not THP.exists() or "[madvise]" not in THP.read_text(), reason="no huge pages on request here"
)
def test_a_large_tensor_lies_in_huge_pages_only_when_asked_for():
    root = Path(__file__).resolve().parents[3]
    mib = {}
    for on in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(on=on)],
            capture_output=True, text=True, check=True, cwd=root,
        )  # fmt: skip
        size, left_behind = done.stdout.split()
        assert left_behind == "False"
        mib[on] = int(size)
    assert mib[True] >= 32 > mib[False]


AGAIN = """
import resource
from outpace.runtime.cpu_memory import keep_memory
if {on}: keep_memory()
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b'1') * (64 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_freed_memory_is_used_again():
    root = Path(__file__).resolve().parents[3]
    faults = {}
    for on in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", AGAIN.format(on=on)],
            capture_output=True, text=True, check=True, cwd=root,
        )  # fmt: skip
        faults[on] = [int(n) for n in done.stdout.split()][4:]
    assert max(faults[True]) < 200, faults
    assert min(faults[False]) > 10_000, faults
