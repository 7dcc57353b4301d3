"""Trials of resuming: each is one interruption of a run that ends in the same bits or does not.
Tests make some of them, a benchmark may count many."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from conftest import TINY
from harness import assert_nothing_lost, call, start

from outpace.checkpoint import store
from outpace.core.runfolder import RunFolder

KILL_SEED = int(os.environ.get("KILL_SEED", "20260101"))
STEPS = 30
WITH_DROPOUT = ("--dropout", "0.1", "--no_use_flash_attention")


def command(dataset: Path, run: Path, *extra: str, steps: int = STEPS) -> list[str]:
    """A training run that saves at each step and keeps every checkpoint."""
    return [
        "train", *TINY, "--dataset", str(dataset), "--run_dir", str(run), "--max_steps", str(steps),
        "--save_every_steps", "1", "--keep_checkpoints", "1000", *WITH_DROPOUT, *extra,
    ]  # fmt: skip


def train(dataset: Path, run: Path, *extra: str, steps: int = STEPS) -> Path:
    """Train to the end; the run's folder."""
    child = call(*command(dataset, run, *extra, steps=steps), cwd=run.parent)
    assert child.code == 0, child.out + child.err
    return run


def hashes(run: Path) -> dict[int, tuple[str, str]]:
    """Step -> SHA-256 of the files of the weights and of the moments, of each checkpoint."""
    found = {}
    for path in store.paths(RunFolder(run).checkpoints):
        manifest = store.read_manifest(path)
        files = manifest["files"]
        found[manifest["step"]] = (
            files[store.MODEL]["sha256"],
            files[store.OPTIMIZER]["sha256"],
        )
    return found


def resumed_at(dataset: Path, straight: Path, step: int, folder: Path, *extra: str) -> list[int]:
    """Go on from the checkpoint of `step` of the run `straight` (0: from none) in a process of its
    own; the steps after it whose weights or moments are other bits. `folder` is left behind."""
    run = folder / f"from-{step}"
    if step:
        name = store.name_of(step, 0)
        shutil.copytree(straight / "checkpoints" / name, run / "checkpoints" / name)
    want = hashes(straight)
    got = hashes(train(dataset, run, *extra, steps=max(want)))
    assert set(got) == set(range(max(step, 1), max(want) + 1)), sorted(got)
    return [at for at in want if at >= step and got.get(at, want[at]) != want[at]]


def chain_of_kills(dataset: Path, run: Path, kills: int, seed: int, *extra: str) -> int:
    """Kill a run with SIGKILL `kills` times, each a random moment after its training has begun to
    go on, checking what is on disk after each; then let it end. Returns the kills that struck."""
    rng, struck = random.Random(seed), 0
    for _ in range(kills):
        child = start(*command(dataset, run, *extra), cwd=run.parent)
        before = newest(run)
        child.until(lambda was=before: newest(run) > was)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.04))
        child.kill()
        struck += child.code == -signal.SIGKILL
        if run.exists():
            assert_nothing_lost(run)
    train(dataset, run, *extra)
    return struck


def newest(run: Path) -> int:
    """Step of the newest checkpoint, 0 without one."""
    return max(map(store.step_of, store.paths(RunFolder(run).checkpoints)), default=0)


def rows_by_step(path: Path) -> dict[int, list[list[int]]]:
    """What `poison.record_rows` wrote: step -> rows of tokens in the order of the global batch,
    the place in front. A step made twice must have been given the same rows twice."""
    found: dict[int, list[list[int]]] = {}
    for line in path.read_text().splitlines():
        step, rows = json.loads(line)
        found[step] = sorted({tuple(r) for r in [*found.get(step, []), *rows]})  # type: ignore[misc]
    return found
