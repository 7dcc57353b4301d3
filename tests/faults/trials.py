"""Trials of a checkpoint's commit protocol: a few of them in a test, hundreds in a benchmark.

A run of a tiny model saves at every step and goes on for ever; each trial continues it, kills it at
some moment, and looks at what was left. `finish` then lets it end, and `straight` is the run that
nobody killed.
"""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from conftest import TINY
from harness import Child, Fault, call, events, start, status

from outpace.checkpoint import store
from outpace.core.runfolder import RunFolder

SMALL = [*TINY, "--n_layer", "1", "--n_embd", "16", "--context", "16"]
"""Flags of a model whose checkpoint takes 120 kB."""
ENDLESS = 1_000_000


def command(
    dataset: Path, run: Path, *extra: str, steps: int = ENDLESS, save_every: int = 1
) -> list[str]:
    """`outpace train`: equal steps whatever the length, so that an endless run can be ended."""
    return [
        "train", *SMALL, "--dataset", str(dataset), "--run_dir", str(run), "--schedule", "constant",
        "--warmup_steps", "2", "--eval_every_steps", "0", "--save_every_steps", str(save_every),
        "--max_steps", str(steps), *extra,
    ]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a kill left behind."""

    inside_a_save: bool
    """A checkpoint or its removal was under way."""
    lost: int
    """1 when the newest acknowledged checkpoint is not there or not whole."""
    bad_published: int
    """Folders with a checkpoint's name that do not verify."""
    step: int
    """Of the newest checkpoint."""


def kill_trial(rng: Random, folder: Path, dataset: Path) -> Outcome:
    """Continue the run in `folder / "run"` and kill it at a random moment: one in five while it
    starts, the others within some saves of the first."""
    run = folder / "run"
    starting = rng.random() < 0.2
    child = start(*command(dataset, run), cwd=folder)
    child.until(lambda: _lives(run, child.pid, saved=not starting))
    time.sleep(rng.uniform(0, 0.15))
    assert child.code is None, child.err
    child.kill()
    return outcome(run)


def outcome(run: Path) -> Outcome:
    """What there is in a run folder after a kill."""
    found = store.paths(RunFolder(run).checkpoints)
    whole = [path.name for path in found if store.fault(path) is None]
    told = [event["path"] for event in events(run, "checkpoint")]
    newest = [path.name for path in found][-1:]
    return Outcome(
        inside_a_save=bool(remains(run)) or newest != told[-1:],
        lost=int(bool(told) and told[-1] not in whole),
        bad_published=len(found) - len(whole),
        step=store.step_of(found[-1]) if found else 0,
    )


def remains(run: Path) -> list[str]:
    """Names that a save or a removal left in the folder of checkpoints."""
    there = RunFolder(run).checkpoints
    return [p.name for p in there.iterdir() if p.name.startswith(".")] if there.is_dir() else []


def finish(folder: Path, dataset: Path, run: str = "run", more: int = 2) -> str:
    """End the run, a few steps on; SHA-256 of its weights, which is that of the run that nobody
    killed when all is well."""
    steps = outcome(folder / run).step + more
    child = call(*command(dataset, folder / run, steps=steps), cwd=folder)
    assert child.code == 0, child.err
    return str(status(folder / run)["weights_sha256"])


def straight(folder: Path, dataset: Path, steps: int) -> str:
    """SHA-256 of the weights after `steps` steps in one go, without a save on the way."""
    arguments = command(dataset, folder / "straight", steps=steps, save_every=0)
    child = call(*arguments, cwd=folder)
    assert child.code == 0, child.err
    return str(status(folder / "straight")["weights_sha256"])


def _lives(run: Path, pid: int, *, saved: bool) -> bool:
    """Whether process `pid` has taken the run over, and saved."""
    with contextlib.suppress(OSError, ValueError):
        now = status(run)
        return now["pid"] == pid and (not saved or "last_step" in now)
    return False


# Every call of a save.

KINDS = ("/.tmp-", "/.LATEST", "/.del-", "checkpoints/step-", "checkpoints")
"""Parts of paths by which a call is found again in another life of the run."""


def points_of_a_save(folder: Path, dataset: Path) -> list[Fault]:
    """Every call to the operating system with which a save and the removal that follows it change
    the disk, each as a kill before it and a kill after it. Leaves a run with three checkpoints'
    worth of steps in `folder / "run"`."""
    run, log = folder / "run", folder / "calls.log"
    assert call(*command(dataset, run, steps=2), cwd=folder).code == 0
    calls = ("mkdir", "open", "write", "fsync", "rename", "replace", "rmtree", "unlink")
    listening = [Fault(name, f"log:{log}", 0, "run/checkpoints") for name in calls]
    assert call(*command(dataset, run, steps=3), cwd=folder, faults=listening).code == 0
    points, seen = [], []
    for line in log.read_text().splitlines():
        name, _, path = line.partition(" ")
        seen.append((name, path))
        kind = next(k for k in KINDS if k in path)
        if any("/.tmp-" in p for _, p in seen):  # not the calls of the start
            at = sum(n == name and kind in p for n, p in seen)
            points += [Fault(name, action, at, kind) for action in ("kill", "kill-after")]
    return points


def one_of_each(points: list[Fault]) -> list[Fault]:
    """The first point of each call on each kind of path."""
    first: dict[tuple[str, str], Fault] = {}
    for i, point in enumerate(points[::2]):
        first.setdefault((point.call, point.path), points[2 * i + len(first) % 2])
    return list(first.values())


# Small file systems.


@contextlib.contextmanager
def mounted(folder: Path, *options: str | Path) -> Iterator[Path]:
    """`mount OPTIONS folder`, and its end. The test is skipped where mounting is not permitted."""
    folder.mkdir(exist_ok=True)
    mount(*options, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments: str | Path) -> None:
    """`mount ARGUMENTS`, or a skip with its own words."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount here")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


def stopped_by(child: Child, code: int, name: str) -> str:
    """The line with which a process ended, which is to be `error[NAME]` and its exit code."""
    assert child.code == code, f"{child.code}\n{child.err}"
    lines = [line for line in child.err.splitlines() if line.startswith("error[")]
    assert len(lines) == 1 and lines[0].startswith(f"error[{name}]: "), child.err
    assert "Traceback" not in child.err
    return lines[0]
