"""Large tensors lie in huge pages, their memory is used again, nobody's environment changes."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

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


def printed_by(program: str) -> list[str]:
    """The words that a Python of its own prints."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.skipif(
    not THP.exists() or "[madvise]" not in THP.read_text(), reason="no huge pages on request here"
)
def test_a_large_tensor_lies_in_huge_pages_only_when_asked_for():
    mib = {}
    for on in (True, False):
        size, left_behind = printed_by(PROGRAM.format(on=on))
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
    faults = {}
    for on in (True, False):
        faults[on] = [int(n) for n in printed_by(AGAIN.format(on=on))][4:]
    assert max(faults[True]) < 200, faults
    assert min(faults[False]) > 10_000, faults
