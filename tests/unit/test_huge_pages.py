"""Large tensors are mapped in huge pages, and nobody else's environment changes."""

import subprocess
import sys
from pathlib import Path

import pytest

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import os, re, torch
from outpace.runtime.huge_pages import use_huge_pages
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
    root = Path(__file__).resolve().parents[2]
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
