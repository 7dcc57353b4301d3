"""Contestants in turns: one that fails does not disturb the others."""

import sys
import time

import psutil

from outpace.bench.peers import Contestant
from outpace.bench.turns import Pace, resident


def contestant(name: str, script: str, **changes) -> Contestant:
    return Contestant(
        name=name,
        setting="",
        command=[sys.executable, "-uc", script],
        step_ms=lambda text: [float(word) for word in text.split()],
        tokens_per_step=1,
        flops_per_token=1.0,
        **changes,
    )


def test_one_that_is_too_slow_is_stopped_while_the_others_are_timed(tmp_path):
    pids = tmp_path / "slow.pid"
    slow = contestant(
        "slow",
        f"import os, pathlib, time; pathlib.Path({str(pids)!r}).write_text(str(os.getpid())); "
        "time.sleep(600)",
    )
    states: list[str] = []

    def looking(text: str) -> list[float]:
        if pids.exists() and pids.read_text():
            states.append(psutil.Process(int(pids.read_text())).status())
        return [float(word) for word in text.split()]

    fast = contestant("fast", "import time\nwhile True: print(1.0); time.sleep(0.01)")
    fast = Contestant(**{**vars(fast), "step_ms": looking})
    pace = Pace(window_s=0.2, rounds=2, warmup_steps=1, start_s=3.0)
    timed = resident([slow, fast], tmp_path, pace, 1, time.monotonic() + 60)
    assert timed[0].failure and "too slow" in timed[0].failure and not timed[0].windows
    assert timed[1].failure is None and len(timed[1].windows) == 2
    assert states[-1] == psutil.STATUS_STOPPED
