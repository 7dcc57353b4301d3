"""Speed of making batches from a warm cache on one thread: the order alone, our loader, and
nanoGPT's own `get_batch`. They take turns, so that whatever slows the machine slows all of them,
and are compared by CPU time, which does not count waiting for other programs.

Speed does not depend on the tokens' values, so they are random, in shards and in one raw file.
"""

import ast
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outpace.bench.peers import check_checkout, script_of, write_raw
from outpace.bench.result import check_writable, spread, write_result
from outpace.core.log import say
from outpace.data.loader import BatchShape, Loader
from outpace.data.mixture import Mixture
from outpace.data.order import OrderSpec
from outpace.data.shard_part import ShardPart
from outpace.data.shards import Dataset
from outpace.tokenizer.gpt2 import Gpt2Tokenizer
from outpace.train.environment import commit_of

VOCABULARY = Gpt2Tokenizer.vocab_size
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Reading:
    """The data to read, and for how long."""

    tokens: int
    shards: int
    micro_batch_size: int
    context: int
    rounds: int
    seconds: float
    """For each candidate in each round."""

    @property
    def batch_tokens(self) -> int:
        return self.micro_batch_size * self.context


def measure_loader(reading: Reading, nanogpt: Path | None, output: Path | None) -> Path:
    """Time every candidate, print, and write the result."""
    check_writable("loader", output)
    if nanogpt is not None:
        check_checkout("nanogpt", nanogpt)
    with tempfile.TemporaryDirectory(prefix="outpace-loader-") as folder:
        dataset = _made_up(Path(folder), reading)
        candidates = _candidates(dataset, reading)
        if nanogpt is not None:
            write_raw(dataset.stream("train"), Path(folder) / "train.bin")
            candidates["nanogpt"] = get_batch_of(nanogpt, Path(folder), reading)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            times = _in_turns(candidates, reading)
        finally:
            torch.set_num_threads(threads)
    rows = {name: _row(name, times, reading) for name in candidates}
    body = {
        "settings": vars(reading),
        "threads": 1,
        "nanogpt_commit": commit_of(nanogpt) if nanogpt is not None else None,
        "rows": rows,
    }
    return write_result("loader", "cpu", body, output)


def _made_up(folder: Path, reading: Reading) -> Dataset:
    """A dataset of random tokens in shards, with a minimal manifest."""
    rng = np.random.default_rng(0)
    size = reading.tokens // reading.shards
    shards = []
    for n in range(reading.shards):
        part = ShardPart(folder, "train", n)
        part.append(rng.integers(0, VOCABULARY, size, np.uint16), np.array([size], np.uint32))
        shards.append(part.finish(n))
    tokenizer = {"name": "gpt2", "vocab_size": VOCABULARY, "vocab_sha256": ""}
    return Dataset(folder, {"name": "made up", "tokenizer": tokenizer}, shards)


def _candidates(dataset: Dataset, reading: Reading) -> dict[str, Callable[[], object]]:
    """Functions that each make the next batch when called."""
    B, T = reading.micro_batch_size, reading.context
    mixed = Mixture.of([dataset] * 3)
    one = Loader(Mixture.of([dataset]), BatchShape(B, 1), OrderSpec(T, 0), device=CPU)
    three = Loader(mixed, BatchShape(B, 1), OrderSpec(T, 0), device=CPU)
    rows = np.empty((B, T + 1), np.uint16)
    steps = {name: itertools.count() for name in ("order", "three", "outpace", "wide")}

    def following(name: str) -> int:
        return next(steps[name])

    def widened() -> torch.Tensor:
        one.read_step(following("wide"), rows)
        return torch.from_numpy(rows).long()

    ahead = one.steps(0, 1 << 40)
    return {
        "order of a batch": lambda: one.order.samples(B * following("order"), B),
        "order of a batch from three datasets": lambda: three.order.samples(
            B * following("three"), B
        ),
        "outpace": lambda: one.read_step(following("outpace"), rows),
        "outpace as int64": widened,
        "outpace as int64, read ahead": lambda: next(ahead),
    }


def get_batch_of(checkout: Path, folder: Path, reading: Reading) -> Callable[[], object]:
    """nanoGPT's own `get_batch`. Importing its train.py would start a training, so the function
    alone is copied into a module in `folder`, with the globals that it reads."""
    source = (checkout / "train.py").read_text(encoding="utf-8")
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "get_batch"
    )
    staged = folder / "nanogpt_get_batch.py"
    staged.write_text(
        "import os\n\nimport numpy as np\nimport torch\n\n"
        f"data_dir = {str(folder)!r}\nblock_size = {reading.context}\n"
        f"batch_size = {reading.micro_batch_size}\ndevice_type = device = 'cpu'\n\n"
        f"{ast.get_source_segment(source, function)}\n",
        encoding="utf-8",
    )
    module = script_of(staged)
    return lambda: module.get_batch("train")


@dataclass
class Times:
    """Milliseconds per batch, round by round."""

    wall_ms: list[float] = field(default_factory=list)
    core_ms: list[float] = field(default_factory=list)
    """CPU time of all threads of the process; a busy machine hardly changes it."""


def _in_turns(candidates: dict[str, Callable[[], object]], reading: Reading) -> dict[str, Times]:
    """Time each candidate in each round, after one warm-up round."""
    found = {name: Times() for name in candidates}
    for number in range(reading.rounds + 1):
        for name, batch in candidates.items():
            count, begin, cpu = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - begin < reading.seconds:
                batch()
                count += 1
            if number:
                found[name].wall_ms.append(1e3 * (time.perf_counter() - begin) / count)
                found[name].core_ms.append(1e3 * (time.process_time() - cpu) / count)
    return found


def _row(name: str, times: dict[str, Times], reading: Reading) -> dict[str, Any]:
    core, wall = spread(times[name].core_ms), spread(times[name].wall_ms)
    rate = reading.batch_tokens / core["median"] / 1e3
    row: dict[str, Any] = {"core_ms": core, "wall_ms": wall, "million_tokens_per_core_second": rate}
    said = (
        f"  {name:<38}{core['median']:7.3f} core ms ({core['p20']:.3f} to {core['p80']:.3f}) "
        f"per batch, {wall['median']:.3f} ms on the clock"
    )
    if not name.startswith("order"):
        said += f", {rate:,.0f} million tokens per core second"
        if "nanogpt" in times and name != "nanogpt":
            pairs = zip(times["nanogpt"].core_ms, times[name].core_ms, strict=True)
            row["times_nanogpt"] = spread([theirs / ours for theirs, ours in pairs])
            said += f", {row['times_nanogpt']['median']:.1f} times nanoGPT"
    say(said)
    return row | {"rounds": vars(times[name])}
