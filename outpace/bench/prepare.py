"""Preparation against nanoGPT's own data/openwebtext/prepare.py, on the same text and cores, in
turns: wall time, memory of the process tree, temporary disk, and whether the tokens are the same.

nanoGPT's script is unchanged except for three lines: the dataset that it loads (local parquet
instead of the hub's name, which newer `datasets` refuse), its number of processes (ours, as its
comment asks), and no more batches than documents (newer `datasets` fail on more). The vocabulary is
provided, so nothing is downloaded.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from outpace.bench.peers import tiktoken_cache
from outpace.core.errors import DataError
from outpace.core.files import sha256_file
from outpace.core.log import note
from outpace.data.sources.files import FilesSource

POLL_S = 0.05
FILES, GROUP_ROWS = 4, 1000
"""Parquet files that share the text; rows in each of their groups, as in the hub's OpenWebText."""
MEAN_CHARACTERS = 5000
"""Mean length of a document, as in OpenWebText; lengths are log-normal."""


@dataclass(frozen=True)
class Run:
    """Time, memory and disk of one run."""

    seconds: float
    cpu_seconds: float
    """CPU time of all its processes; other work on the machine hardly changes it."""
    peak_bytes: int
    """Memory of all its processes; shared pages are counted in each."""
    peak_disk_bytes: int
    """Temporary disk space, beyond its result."""


def documents(texts: Sequence[str], megabytes: float) -> Iterator[str]:
    """Documents cut from long texts at line ends, up to `megabytes` MB in total."""
    rng = np.random.default_rng(0)
    left = megabytes * 1e6
    for text in texts:
        at = 0
        while at < len(text) and left > 0:
            size = int(rng.lognormal(np.log(MEAN_CHARACTERS) - 0.5, 1.0)) + 100
            end = text.find("\n", at + size) + 1 or len(text)
            yield text[at:end]
            left -= len(text[at:end].encode())
            at = end


def write_corpus(folder: Path, inputs: list[str], megabytes: float, repeats: int) -> int:
    """Write parquet files of documents from text files, each hard-linked so that it is there
    `repeats` times; returns the bytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    batches = (batch for chunk in FilesSource(inputs).chunks() for batch in chunk.read())
    cut = list(documents([text for batch in batches for text in batch.texts], megabytes))
    size = sum(len(text.encode()) for text in cut)
    if size < 0.9e6 * megabytes:
        raise DataError(
            "TOO-LITTLE-DATA",
            f"the text has {size / 1e6:.0f} MB, but {megabytes:.0f} are needed",
            do="name more --input, or a smaller --megabytes",
        )
    for n in range(FILES):
        path = folder / f"000-{n:02d}.parquet"
        part = cut[n * len(cut) // FILES : (n + 1) * len(cut) // FILES]
        pq.write_table(pa.table({"text": part}), path, row_group_size=GROUP_ROWS)
        for repeat in range(1, repeats):
            os.link(path, folder / f"{repeat:03d}-{n:02d}.parquet")
    return size * repeats


def nanogpt_command(
    checkout: Path, python: str, corpus: Path, scratch: Path, workers: int
) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run nanoGPT's prepare.py on a corpus, in `scratch`."""
    script = (checkout / "data" / "openwebtext" / "prepare.py").read_text(encoding="utf-8")
    files = sorted(map(str, corpus.glob("*.parquet")))
    for old, new in (
        ("num_proc = 8", f"num_proc = {workers}"),
        ("total_batches = 1024", "total_batches = min(1024, len(dset))"),
        ('load_dataset("openwebtext", ', f'load_dataset("parquet", data_files={files!r}, '),
    ):
        if script.count(old) != 1:
            raise DataError(
                "PEER", f"{checkout}: prepare.py has changed: no {old!r}", do="use an older commit"
            )
        script = script.replace(old, new)
    cache = tiktoken_cache(scratch / "tiktoken")
    (scratch / "prepare.py").write_text(script, encoding="utf-8")
    env = {
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(scratch / "cache"),
        "HF_DATASETS_CACHE": str(scratch / "cache"), "TIKTOKEN_CACHE_DIR": str(cache),
    }  # fmt: skip
    return [python, str(scratch / "prepare.py")], env


def ours_command(corpus: Path, output: Path, workers: int, engine: str) -> list[str]:
    return [
        *(sys.executable, "-m", "outpace", "prepare", "files", "--input", str(corpus)),
        *("--output", str(output), "--split", "nanogpt", "--workers", str(workers)),
        *("--tokenizer_engine", engine),
    ]


def measure(command: list[str], folder: Path, log: Path, env: dict[str, str] | None = None) -> Run:
    """Run a command to its end and monitor it. DataError if it fails."""
    if hasattr(os, "sync"):  # otherwise the disk may still be busy with an earlier run's output
        os.sync()
    started, cpu = time.perf_counter(), _cpu_of_children()
    memory = disk = 0
    ended = threading.Event()

    def watch(process: psutil.Process) -> None:
        nonlocal memory, disk
        ticks = 0
        while not ended.wait(POLL_S):
            memory = max(memory, _resident(process))
            if ticks % 4 == 0:
                disk = max(disk, _bytes_below(folder))
            ticks += 1

    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=os.environ | (env or {})
        )
        watcher = threading.Thread(target=watch, args=[psutil.Process(process.pid)])
        watcher.start()
        try:
            process.wait()
            seconds, cpu = time.perf_counter() - started, _cpu_of_children() - cpu
        finally:
            ended.set()
            watcher.join()
    if process.returncode:
        raise DataError(
            "BENCH",
            f"{command[0]} ended with {process.returncode}: "
            f"{log.read_text(errors='replace')[-500:].strip()}",
            do=f"see {log}",
        )
    left = sum(p.stat().st_size for p in folder.rglob("*.bin"))
    return Run(seconds, cpu, memory, max(0, max(disk, _bytes_below(folder)) - left))


def _cpu_of_children() -> float:
    """CPU seconds of all ended and awaited child processes, and of their children."""
    used = os.times()
    return used.children_user + used.children_system


def _resident(process: psutil.Process) -> int:
    """Bytes of a process and its children."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:
        pass
    return total


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).stat().st_size
            except OSError:
                continue
    return total


@dataclass(frozen=True)
class Race:
    """The two sides, and their common input."""

    nanogpt: Path
    python: str
    """An interpreter with nanoGPT's dependencies (datasets, tiktoken, tqdm)."""
    inputs: list[str]
    workers: int
    engines: tuple[str, ...] = ("fastokens", "tiktoken")


def race(how: Race, scratch: Path, megabytes: float, repeats: int, rounds: int) -> dict[str, Any]:
    """Run both on one corpus, in turns, each twice in a row. The second run counts: the first also
    loads its code and, on a virtual machine, has to get its memory from the host. Also compares the
    exported train.bin and val.bin with nanoGPT's."""
    corpus = scratch / "corpus"
    shutil.rmtree(scratch, ignore_errors=True)
    size = write_corpus(corpus, how.inputs, megabytes, repeats)
    found: dict[str, dict[str, list[dict[str, float]]]] = {"first_runs": {}, "runs": {}}
    nano, ours = scratch / "nanogpt", scratch / "ours"
    for turn in range(rounds):
        for runs in found.values():
            shutil.rmtree(nano, ignore_errors=True)
            command, env = nanogpt_command(how.nanogpt, how.python, corpus, nano, how.workers)
            _add(runs, "nanogpt", measure(command, nano, scratch / "nanogpt.log", env), size)
        for engine in how.engines:
            for runs in found.values():
                shutil.rmtree(ours, ignore_errors=True)
                ours.mkdir()
                command = ours_command(corpus, ours / "shards", how.workers, engine)
                _add(runs, engine, measure(command, ours, scratch / f"{engine}.log"), size)
            if engine == how.engines[0] and turn == 0:
                export = [sys.executable, "-m", "outpace", "data", "export", str(ours / "shards")]
                export += [str(ours / "nanogpt"), "--to", "nanogpt"]
                exported = measure(export, ours / "nanogpt", scratch / "export.log")
                equal = all(
                    sha256_file(ours / "nanogpt" / f"{split}.bin")
                    == sha256_file(nano / f"{split}.bin")
                    for split in ("train", "val")
                )
    by_round = _ratios(found["runs"], "seconds")
    first = _ratios(found["first_runs"], "seconds")
    return {
        "text_bytes": size,
        "megabytes_before_repeating": megabytes,
        "repeats": repeats,
        "workers": how.workers,
        **found,
        "times_nanogpt": {name: median(values) for name, values in by_round.items()},
        "times_nanogpt_by_round": by_round,
        "times_nanogpt_in_cpu_by_round": _ratios(found["runs"], "cpu_seconds"),
        "times_nanogpt_at_first": {name: median(values) for name, values in first.items()},
        "export": {"seconds": exported.seconds, "byte_identical_to_nanogpt": equal},
    }


def _ratios(runs: dict[str, list[dict[str, float]]], key: str) -> dict[str, list[float]]:
    """nanoGPT's figure over each contestant's, in each round, sorted."""
    return {
        name: sorted(n[key] / o[key] for n, o in zip(runs["nanogpt"], mine, strict=True))
        for name, mine in runs.items()
    }


def _add(found: dict[str, list[dict[str, float]]], name: str, run: Run, size: int) -> None:
    speed = size / 1e6 / run.seconds
    note(f"{name}: {run.seconds:.2f} s, {speed:.1f} MB/s, {run.peak_bytes / 1e6:.0f} MB")
    found.setdefault(name, []).append({**vars(run), "megabytes_a_second": speed})
