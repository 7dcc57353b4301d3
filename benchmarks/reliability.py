"""Measure the figures of docs/reliability.md: kills survived, flipped bits found, exact resumes,
the stall of a save, bad input refused, and the cost of the guards. The trials are those of
tests/faults.

    make reliability                       all parts, about half an hour on two cores
    make reliability PARTS="kills stall"   some of them

Each part writes benchmarks/results/reliability-PART.json; benchmarks/render.py makes the table.
"""

import contextlib
import functools
import io
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import TINY, write_corpus

from outpace.bench.result import spread, write_result
from outpace.checkpoint import store
from outpace.checkpoint.saver import Saver
from outpace.checkpoint.state import optimizer_tensors
from outpace.cli.main import main as outpace_main
from outpace.config.load import load as load_config
from outpace.config.presets import size
from outpace.core.log import say
from outpace.core.runfolder import RunFolder
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.sources.files import FilesSource
from outpace.model.gpt2 import GPT2
from outpace.optim.adamw import build
from outpace.optim.groups import parameter_groups
from outpace.runtime import distributed
from outpace.train import loop
from outpace.train.assemble import Session, assemble
from outpace.train.lagged_guard import LaggedGuard
from outpace.train.progress import Progress
from outpace.train.run import plan_run
from outpace.train.step import train_step
from outpace.train.stop import StopRequest
from outpace.train.watchdog import Watchdog

ROOT = Path(__file__).resolve().parents[1]
KILLS, FLIPS_A_FILE, SEED = 200, 100, 20261123
SAVES, PAIRS, WARM_UP = 5, 150, 10


def dataset_in(folder: Path) -> Path:
    """A prepared dataset of about 60,000 byte tokens."""
    source = FilesSource([str(write_corpus(folder / "text"))])
    with contextlib.redirect_stderr(io.StringIO()):
        prepare(source, folder / "data", PrepareOptions(tokenizer="bytes", val_fraction=0.1))
    return folder / "data"


def kills(folder: Path) -> dict[str, Any]:
    """Repeated SIGKILL at random moments of a run that saves at every step."""
    from trials import finish, kill_trial, straight

    rng, data = random.Random(SEED), dataset_in(folder)
    outcomes = [kill_trial(rng, folder, data) for _ in range(KILLS)]
    ended = finish(folder, data)
    steps = json.loads((folder / "run" / "STATUS.json").read_text())["last_step"]
    return {
        "kills": len(outcomes),
        "inside_a_save": sum(o.inside_a_save for o in outcomes),
        "acknowledged_checkpoints_lost": sum(o.lost for o in outcomes),
        "bad_checkpoints_published": sum(o.bad_published for o in outcomes),
        "steps": steps,
        "weights_sha256": ended,
        "same_as_uninterrupted": ended == straight(folder, data, steps),
        "seed": SEED,
    }


def flips(folder: Path) -> dict[str, Any]:
    """Single bits flipped at random places in each file of a checkpoint."""
    tensors = {
        store.MODEL: {"wte.weight": torch.randn(300, 64), "bias": torch.randn(64)},
        store.OPTIMIZER: {"wte.weight::exp_avg": torch.randn(300, 64)},
    }
    path = store.save(folder, 1, tensors, {"step": 1}, store.Origin(run="flips"))
    rng, found = random.Random(SEED), Counter[str]()
    for file in sorted(path.iterdir()):
        original = file.read_bytes()
        for _ in range(FLIPS_A_FILE):
            damaged = bytearray(original)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            found[file.name] += store.fault(path) is not None
        file.write_bytes(original)
    assert store.fault(path) is None
    return {"flipped": FLIPS_A_FILE * len(found), "found": found.total(), "by_file": dict(found)}


def resume(folder: Path) -> dict[str, Any]:
    """A run of 30 steps, resumed at each: compare weights and moments at each later save."""
    import trials_resume

    data = dataset_in(folder)
    straight = trials_resume.train(data, folder / "straight")
    points = range(trials_resume.STEPS)
    wrong = {k: trials_resume.resumed_at(data, straight, k, folder) for k in points}
    want = trials_resume.hashes(straight)
    return {
        "points": len(points),
        "exact": sum(not steps for steps in wrong.values()),
        "hashes_compared": 2 * sum(max(want) - max(k, 1) + 1 for k in points),
        "last_weights_sha256": want[max(want)][0],
    }


def bad_input(folder: Path) -> dict[str, Any]:
    """Impossible flags, damaged shards, documents and models, each through the command line."""
    import fuzz
    import fuzz_flags
    import fuzz_models

    data, good = dataset_in(folder), fuzz_models.originals(folder / "good")
    kinds: dict[str, Iterable[tuple[str, Callable[[Path], list[str]]]]] = {
        "flags": ((name, lambda _, argv=argv: argv) for name, argv in fuzz_flags.bad_flags()),
        "datasets": fuzz.damaged_datasets(data, 200),
        "documents": fuzz.damaged_texts(200),
        "models": ((case.name, case.make) for case in fuzz_models.cases(good)),
    }
    tried: dict[str, dict[str, int]] = {}
    faults: list[str] = []
    for kind, cases in kinds.items():
        codes = Counter[str]()
        for number, (name, make) in enumerate(cases):
            place = folder / kind / str(number)
            place.mkdir(parents=True)
            with contextlib.chdir(place):
                code, text = _call(make(place))
            codes[str(code)] += 1
            if code == 1 or "Traceback" in text:
                faults.append(f"{kind}: {name}: exit {code}")
        tried[kind] = dict(codes)
    return {
        "tried": sum(sum(codes.values()) for codes in tried.values()),
        "exit_codes": tried,
        "tracebacks_or_exit_1": faults,
    }


def _call(argv: list[str]) -> tuple[int, str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = outpace_main([str(a) for a in argv])
    return code, text.getvalue()


def stall(folder: Path) -> dict[str, Any]:
    """How long training waits for a save of the 124M model with its moments."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = GPT2(size("124M").shape())
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer = build(parameter_groups(model, 0.1), 6e-4, betas=(0.9, 0.95), eps=1e-8)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.zero_grad()
    files = {
        store.MODEL: dict(model.named_parameters()),
        store.OPTIMIZER: optimizer_tensors(model, optimizer),
    }
    savers = {"in front": Saver(background=False), "behind": Saver(background=True)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in savers}
    for turn in range(SAVES + 1):
        for name, saver in savers.items():
            found[name].append(_save(saver, files, folder / f"{name}-{turn}"))
    result: dict[str, Any] = {
        "bytes": sum(t.nbytes for tensors in files.values() for t in tensors.values())
    }
    for name, times in found.items():
        stalls, writes = zip(*times, strict=True)
        result[name] = {
            "first_stall_s": stalls[0],  # it allocates the buffers
            "stall_s": spread(stalls[1:]),
            "write_s": spread(writes[1:]),
        }
    front, behind = (result[name]["stall_s"]["median"] for name in savers)
    return result | {"ratio": front / behind}


def _save(saver: Saver, files: dict[str, Any], place: Path) -> tuple[float, float]:
    """Seconds that training waits for a save, and that writing it takes."""
    place.mkdir()
    written, seconds = threading.Event(), []

    def write(copied: Any) -> Path:
        state = {"weights_sha256": store.weights_sha256(copied[store.MODEL])}
        return store.save(place, 1, copied, state)

    def done(path: Path, stall_s: float, write_s: float) -> None:
        seconds.append((stall_s, write_s))
        store.discard(path)
        written.set()

    saver.save(files, write, done)
    # Meanwhile training would continue; a wait inside the next save would count as stall.
    written.wait(600)
    saver.wait()
    return seconds[0]


def cost(folder: Path) -> dict[str, Any]:
    """Steps with and without all guards, in turns within one process."""
    torch.set_num_threads(1)
    shape = ["--n_layer", "4", "--n_head", "4", "--n_embd", "256", "--context", "128"]
    with session(folder, [*TINY, *shape, "--micro_batch_size", "4", "--lr", "1e-4"]) as s:
        progress = Progress()
        guard = LaggedGuard(s, progress)
        s.watchdog.start()
        times: dict[bool, list[float]] = {True: [], False: []}
        steps = s.loader.steps(0, 2 * (PAIRS + WARM_UP))
        for number, batches in enumerate(steps):
            guarded = number % 2 == (number // 2) % 2  # each goes first in every other pair
            s.trainable.guard = guarded
            started, guards = time.perf_counter(), {}
            if guarded:
                guards = dict(zip(("loss_limit", "norm_limit"), s.guard.limits(), strict=True))
                guards["agree"] = functools.partial(loop.agree, s)
            result = train_step(s.trainable, batches, step=progress.step, lr=1e-4, **guards)
            assert result is not None
            progress.step += 1
            if guarded:
                guard.enter(result)
            else:
                float(result.loss)
            times[guarded].append(time.perf_counter() - started)
        s.watchdog.stop()
    with_guards, without = (times[g][WARM_UP:] for g in (True, False))
    ratios = [a / b for a, b in zip(with_guards, without, strict=True)]
    return {
        "step_ms_with": spread([1e3 * t for t in with_guards]),
        "step_ms_without": spread([1e3 * t for t in without]),
        "ratio_of_medians": statistics.median(with_guards) / statistics.median(without),
        "median_of_ratios": statistics.median(ratios),
        "pairs": len(ratios),
        "threads": 1,
    }


@contextlib.contextmanager
def session(folder: Path, flags: list[str]) -> Iterator[Session]:
    """A Session, as the training loop gets it."""
    run = RunFolder(folder / "run")
    config, set_by = load_config(
        [*flags, "--dataset", str(dataset_in(folder)), "--max_steps", "9999"]
    )
    ranks = distributed.Ranks()
    plan, _, mixture, device = plan_run(config, set_by, ranks)
    run.create()
    yield assemble(
        config, plan, folder=run, group=distributed.Group(ranks, device), mixture=mixture,
        stop=StopRequest(), identity={}, watchdog=Watchdog(1800.0, run.root, 0, lambda error: None),
        fresh=True,
    )  # fmt: skip


PARTS = {
    "kills": kills, "flips": flips, "resume": resume, "stall": stall, "bad-input": bad_input,
    "cost": cost,
}  # fmt: skip


def main(names: list[str]) -> None:
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            body = PARTS[name](Path(folder))
        body["seconds"] = round(time.perf_counter() - started, 1)
        output = ROOT / "benchmarks" / "results" / f"reliability-{name}.json"
        path = write_result(f"reliability-{name}", "cpu", body, output)
        say(f"{name}: {json.dumps(body)}\n  {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
