"""Real processes to break: each is forked from a server that has imported torch once, so that a
training run starts in a third of a second, runs `outpace ARGUMENTS` in its own session, and can be
killed, stopped, starved or lied to by its operating system.

Faults of the operating system are put in by wrapping the calls through which the package reaches
it (`Fault`), in the child alone: the package itself has no hooks for tests.
"""

import builtins
import contextlib
import errno
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.checkpoint import store
from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
CALLS: dict[str, tuple[Any, str]] = {
    "fsync": (os, "fsync"),
    "rename": (os, "rename"),
    "replace": (os, "replace"),
    "mkdir": (os, "mkdir"),
    "rmtree": (shutil, "rmtree"),
    "unlink": (os, "unlink"),
    "open": (io, "open"),
    "write": (io, "write"),
}
"""Calls that change a disk, by name. `open` and `write` are those of files below `Fault.below`."""


@dataclass(frozen=True)
class Fault:
    """At the `at`-th of the named calls (1 is the first; all of them when 0), on a path that
    contains `path`: `kill` before it, `kill-after` it, raise the errno of a name such as `ENOSPC`,
    `sleep:SECONDS` before it, send a signal such as `SIGTERM` before it, or `log:FILE`: append a
    line `CALL PATH` to a file."""

    call: str
    action: str
    at: int = 1
    path: str = ""


@dataclass
class Child:
    """A running `outpace` process and what it said."""

    process: Any
    folder: Path
    out_file: Path
    err_file: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.err_file.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """Exit code, minus the signal when killed; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float = 120) -> int:
        """Its exit code. One that does not end in time is killed, and the test fails."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout} s\n{self.out}\n{self.err}")
        return int(self.process.exitcode)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process and all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join(30)

    def until(self, happened: Callable[[], bool], timeout: float = 120) -> None:
        """Return when `happened`, or when the process has ended; fail after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.code is None and not happened():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"waited {timeout} s in vain\n{self.out}\n{self.err}")
            time.sleep(0.002)

    def until_step(self, run: Path, step: int, timeout: float = 120) -> None:
        """Return when the run has logged `step`."""
        self.until(lambda: logged(run) >= step, timeout)


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("outpace.train.run", "outpace.cli.main", "outpace.report.page", "plotly.graph_objects"),
        "torch._inductor",  # which deterministic kernels import
    ]
)
_count = iter(range(10**9))


def start(
    *arguments: str | Path,
    cwd: Path,
    faults: Sequence[Fault] = (),
    env: dict[str, str] | None = None,
    setup: Callable[..., None] | None = None,
    args: tuple[Any, ...] = (),
    limits: dict[int, int] | None = None,
) -> Child:
    """Start `outpace ARGUMENTS` in `cwd`. `setup(*args)`, a module's function, runs first in the
    child; `limits` maps `resource.RLIMIT_*` to bytes or numbers."""
    number = next(_count)
    out, err = (cwd / f".child-{os.getpid()}-{number}.{end}" for end in ("out", "err"))
    process = _context.Process(
        target=_child,
        args=([str(a) for a in arguments], str(cwd), list(faults), env or {}, setup, args,
              limits or {}, str(out), str(err)),
        daemon=False,
    )  # fmt: skip
    process.start()
    return Child(process, cwd, out, err)


def call(*arguments: str | Path, cwd: Path, timeout: float = 120, **options: Any) -> Child:
    """`start`, and wait for its end."""
    child = start(*arguments, cwd=cwd, **options)
    child.wait(timeout)
    return child


def _child(
    arguments: list[str],
    cwd: str,
    faults: list[Fault],
    env: dict[str, str],
    setup: Callable[..., None] | None,
    args: tuple[Any, ...],
    limits: dict[int, int],
    out: str,
    err: str,
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8")
    sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8")
    from outpace.core import console

    console.err.file = sys.stderr  # the console was made by the server, for its own standard error
    code = 1
    try:
        if setup is not None:
            setup(*args)
        for fault in faults:
            inject(fault)
        for what, most in limits.items():
            resource.setrlimit(what, (most, most))
        from outpace.cli.main import main

        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


# Faults.


def inject(fault: Fault) -> None:
    """Wrap the call that `fault` names, in this process."""
    seen = 0

    def strike(path: str) -> bool:
        """Count a call; act before it, or say that it is to be killed after."""
        nonlocal seen
        if fault.path not in path:
            return False
        seen += 1
        if fault.at and seen != fault.at:
            return False
        if fault.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.action.startswith("sleep:"):
            time.sleep(float(fault.action.removeprefix("sleep:")))
        elif fault.action.startswith("log:"):
            log = os.open(fault.action[4:], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(log, f"{fault.call} {path}\n".encode())
            os.close(log)
        elif fault.action.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, fault.action))
        elif fault.action != "kill-after":
            number = getattr(errno, fault.action)
            raise OSError(number, os.strerror(number), path or None)
        return fault.action == "kill-after"

    if fault.call in ("open", "write"):
        _wrap_files(fault.call, strike)
        return
    module, name = CALLS[fault.call]
    real = getattr(module, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        last = strike(_path_of(arguments[0]))
        result = real(*arguments, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, wrapped)


def _wrap_files(call: str, strike: Callable[[str], bool]) -> None:
    """Wrap `open` for writing, or every write to a file so opened."""
    real = builtins.open

    def wrapped(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        writes = isinstance(file, (str, Path)) and any(c in mode for c in "wxa+")
        last = strike(str(file)) if writes and call == "open" else False
        opened = real(file, mode, *arguments, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return _Writes(opened, str(file), strike) if writes and call == "write" else opened

    builtins.open = wrapped  # type: ignore[assignment]
    io.open = wrapped  # type: ignore[assignment]


class _Writes:
    """A file whose writes are counted. What was written before a kill has reached the file."""

    def __init__(self, file: Any, path: str, strike: Callable[[str], bool]) -> None:
        self._file, self._path, self._strike = file, path, strike

    def write(self, data: Any) -> int:
        self._file.flush()
        last = self._strike(self._path)
        written: int = self._file.write(data)
        if last:
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Writes":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def _path_of(argument: Any) -> str:
    if isinstance(argument, int):
        try:
            return os.readlink(f"/proc/self/fd/{argument}")
        except OSError:
            return ""
    return os.fspath(argument) if isinstance(argument, (str, os.PathLike)) else ""


# What is true of a run, whatever happened to it.


def logged(run: Path) -> int:
    """Last step in metrics.jsonl, 0 without one."""
    return max((int(r.get("step", 0)) for r in read_json_lines(run / "metrics.jsonl")), default=0)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind."""
    return [r for r in read_json_lines(run / "events.jsonl") if r.get("event") == kind]


def rollbacks(run: Path) -> list[int]:
    """The steps that a run went back to."""
    return [e["back_to"] for e in events(run, "rollback")]


def status(run: Path) -> dict[str, Any]:
    """STATUS.json."""
    record: dict[str, Any] = json.loads((run / "STATUS.json").read_text())
    return record


def assert_nothing_lost(run: Path) -> None:
    """I1: the newest checkpoint that was said to be committed, and not deleted since, is whole; no
    folder with a checkpoint's name is anything but whole."""
    found = store.paths(RunFolder(run).checkpoints)
    for path in found:
        assert store.fault(path) is None, f"{path.name}: {store.fault(path)}"
    committed = events(run, "checkpoint")
    if committed:
        assert committed[-1]["path"] in [p.name for p in found], "an acknowledged one is lost"


def assert_steps_stand_once(run: Path) -> None:
    """I3: every line of the metrics parses, steps rise by one, and none is missing."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1)), steps


def assert_tidy(run: Path) -> None:
    """I5, I6: no remains of a save, and nobody holds the lock."""
    remains = [p.name for p in RunFolder(run).checkpoints.iterdir() if p.name.startswith(".")]
    assert not remains, remains
    RunFolder(run).lock().release()


@dataclass
class Sentinel:
    """I4: a folder whose content must not change, but for the run below it."""

    folder: Path
    run: Path
    before: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self._content()

    def check(self) -> None:
        assert self._content() == self.before

    def _content(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.folder)): p.read_bytes()
            for p in sorted(self.folder.rglob("*"))
            if p.is_file() and self.run not in p.parents and not p.name.startswith(".child-")
        }
