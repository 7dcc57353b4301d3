"""Processes that we start."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from outpace.core import children

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def ends(pid: int) -> bool:
    """Whether a process is gone within 30 seconds, or waits for nothing but to be read of."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends them")
def test_a_child_ends_with_a_parent_that_was_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from outpace.core import children; "
        f"child = children.start({SLEEP!r}, Path({str(tmp_path / 'log')!r})); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert ends(child)


def test_a_child_is_ended_with_what_it_started_and_what_it_said_is_kept(tmp_path):
    code = (
        "import subprocess, sys, time; "
        f"print(subprocess.Popen({SLEEP!r}).pid, flush=True); time.sleep(600)"
    )
    process = children.start([sys.executable, "-c", code], tmp_path / "log")
    while not (said := (tmp_path / "log").read_text()).endswith("\n"):
        time.sleep(0.05)
    children.end(process)
    assert process.returncode == -signal.SIGKILL
    assert ends(int(said))
    children.send(process, signal.SIGTERM)  # nothing is there any more
