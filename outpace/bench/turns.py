"""Time several training commands against each other, in turns, so that whatever slows the machine
slows all of them. Each is a process with its own log and its own clock.

On a CPU all stay resident and one runs at a time: the others are stopped (SIGSTOP), and each round
moves to the next cores. On a GPU, whose memory they would share, each turn is a fresh process.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from outpace.bench.peers import Contestant
from outpace.core.children import end, send, start
from outpace.core.crash import last_error
from outpace.core.limits import cores_to_run_on
from outpace.runtime.driver import State, state_amid
from outpace.runtime.hardware import high_water_mark

POLL_S = 0.1
STRADDLING = 2
"""Steps left out after a stop: the one that it interrupted, and one before it, whose line may not
have been written yet."""
LEAST_STEPS = 3
"""Least number of steps in a window, however short it is."""


@dataclass(frozen=True)
class Pace:
    """How long to time, and how often."""

    window_s: float
    rounds: int
    warmup_steps: int
    """Steps that are not timed, for compilation, caches and clocks."""
    start_s: float = 240.0
    """Most seconds that a process may take to compile and warm up, or for its next steps."""


class Failed(Exception):
    """A contestant's process ended or never started to train; its log says why."""


class TooSlow(Failed):
    """A contestant did not finish its steps in time."""


@dataclass
class Timed:
    """The measurements of one contestant."""

    contestant: Contestant
    log: Path
    windows: list[list[float]] = field(default_factory=list)
    """Milliseconds of each step, window by window."""
    peak_bytes: int = 0
    """On a CPU the largest resident size; on a GPU the largest use of the whole GPU, minus its use
    before the start."""
    gpu: list[State] = field(default_factory=list)
    """The GPU's state in the middle of each window."""
    failure: str | None = None


class Racer:
    """A contestant's process, in its own process group; what it does is noted in `timed`."""

    def __init__(self, timed: Timed, threads: int | None = None) -> None:
        self.timed = timed
        contestant = timed.contestant
        env = os.environ | contestant.env
        if threads:
            env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if contestant.scratch:
            shutil.rmtree(contestant.scratch, ignore_errors=True)
        self._gpu_before = _gpu_in_use()
        self.process = start(contestant.command, timed.log, cwd=contestant.cwd, env=env)

    def steps(self) -> list[float]:
        """Milliseconds of every step so far. Failed if the process has ended."""
        contestant, log = self.timed.contestant, self.timed.log
        if (code := self.process.poll()) is not None:
            raise Failed(f"it ended with {code}: {last_line(log)}")
        source = contestant.progress or log
        return contestant.step_ms(source.read_text(errors="replace") if source.exists() else "")

    def wait_for(self, steps: int, until: float) -> None:
        """Wait until `steps` steps are done; TooSlow if the clock reaches `until` first."""
        while len(self.steps()) < steps:
            if time.monotonic() > until:
                raise TooSlow(f"it was too slow: {last_line(self.timed.log)}")
            self.look_at_memory()
            time.sleep(POLL_S)

    def window(self, seconds: float, skip: int, limit_s: float) -> None:
        """Time the steps in the next `seconds`, without the first `skip`, but at least LEAST_STEPS
        steps. Failed if the process ends, TooSlow if those steps take `limit_s` longer."""
        before, begin = len(self.steps()), time.monotonic()
        with state_amid(_device(), seconds / 2) as found:
            while time.monotonic() < begin + seconds:
                self.look_at_memory()
                time.sleep(POLL_S)
        self.timed.gpu += found
        self.wait_for(before + skip + LEAST_STEPS, begin + seconds + limit_s)
        self.timed.windows.append(self.steps()[before + skip :])

    def look_at_memory(self) -> None:
        now = 0
        if torch.cuda.is_available():
            now = _gpu_in_use() - self._gpu_before
        else:
            with contextlib.suppress(psutil.Error, OSError):
                pid = self.process.pid
                now = high_water_mark(pid) or psutil.Process(pid).memory_info().rss
        self.timed.peak_bytes = max(self.timed.peak_bytes, now)

    def pause(self) -> None:
        send(self.process, signal.SIGSTOP)

    def resume(self) -> None:
        send(self.process, signal.SIGCONT)


def resident(
    contestants: list[Contestant], logs: Path, pace: Pace, threads: int, deadline: float
) -> list[Timed]:
    """Start all on the CPU; one runs at a time on `threads` cores, in each round on the next ones.
    Windows shrink to meet `deadline` (of time.monotonic)."""
    timed = [Timed(c, logs / f"{c.name}.log") for c in contestants]
    with no_survivors() as ending:
        racers = []
        for t in timed:
            racers.append(Racer(t, threads))
            ending.callback(end, racers[-1].process)
        _warm_up(racers, pace)
        for r in range(pace.rounds):
            running = [racer for racer in racers if racer.timed.failure is None]
            for i, racer in enumerate(running):
                windows = len(running) * (pace.rounds - r) - i
                seconds = min(pace.window_s, (deadline - time.monotonic()) / windows)
                with _failure_of(racer.timed):
                    hold_on(racer.process.pid, _cores(r, threads))
                    racer.resume()
                    racer.window(seconds, STRADDLING, pace.start_s)
                racer.pause()
    return timed


def fresh(
    contestants: list[Contestant],
    logs: Path,
    pace: Pace,
    deadline: float,
    after: Callable[[list[Timed]], object],
) -> list[Timed]:
    """Run one fresh process after the other, in each round; after each, `after` is called with the
    times so far. None is started after `deadline`, and one still compiling then is given up, so
    that the others' results are not lost. One that compiles for more than twice its share of the
    time is ended and tried again after the others, with the compiler's cache filled."""
    timed = [Timed(c, logs / f"{c.name}.log") for c in contestants]
    turns = deque(timed * pace.rounds)
    while turns:
        t, now = turns.popleft(), time.monotonic()
        if t.failure is not None or now > deadline:
            continue
        with _failure_of(t), no_survivors() as ending:
            racer = Racer(t)
            ending.callback(end, racer.process)
            share = 2 * (deadline - now) / (len(turns) + 1)
            until = now + min(pace.start_s, share, deadline - now)
            try:
                racer.wait_for(pace.warmup_steps, until)
            except TooSlow:
                if until < now + pace.start_s:
                    turns.append(t)
                    continue
                raise
            racer.window(pace.window_s, 0, pace.start_s)
        after(timed)
    return timed


def hold_on(pid: int, cores: set[int]) -> None:
    """Move every thread of a process to `cores` (Linux)."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def log_end(log: Path) -> str:
    """The last 4,000 characters of a log."""
    return log.read_text(errors="replace")[-4000:] if log.is_file() else ""


def last_line(log: Path) -> str:
    """The last error in a log, at most 200 characters."""
    return last_error(log.read_text(errors="replace"))[:200] or "it printed nothing"


def _warm_up(racers: list[Racer], pace: Pace) -> None:
    """Let all start together, and stop each as soon as it is warm."""
    until = time.monotonic() + pace.start_s
    cold = list(racers)
    while cold:
        for racer in tuple(cold):
            with _failure_of(racer.timed):
                racer.look_at_memory()
                if len(racer.steps()) < pace.warmup_steps and time.monotonic() < until:
                    continue
                racer.wait_for(pace.warmup_steps, until)
            racer.pause()
            cold.remove(racer)
        time.sleep(POLL_S)


@contextlib.contextmanager
def _failure_of(t: Timed) -> Iterator[None]:
    """Record a failure, so that the others can continue."""
    try:
        yield
    except Failed as failed:
        t.failure = str(failed)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary folder that is removed afterwards, also on Ctrl-C and SIGTERM. It is kept if an
    exception is raised, for the logs in it."""
    with no_survivors():
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        try:
            yield folder
        except Exception:
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def no_survivors() -> Iterator[contextlib.ExitStack]:
    """An ExitStack whose callbacks, which end processes, also run on SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as ending:
        ending.callback(signal.signal, signal.SIGTERM, before)
        yield ending


def _cores(turn: int, n: int) -> set[int]:
    cores = cores_to_run_on()
    return {cores[(turn + i) % len(cores)] for i in range(n)}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _gpu_in_use() -> int:
    """Bytes in use on the whole GPU, contexts and caches included; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free
