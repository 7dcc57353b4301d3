"""Checks of this machine for what may go wrong in a run: findings, each with a verdict and, if
needed, a remedy. Changes nothing except PyTorch's own cache of compiled code.
"""

import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from outpace.checkpoint import store
from outpace.config.schema import HELLASWAG_PATH
from outpace.core.crash import first_line
from outpace.core.errors import CheckpointError, DataError, OutpaceError, StorageError, UsageError
from outpace.core.files import existing_folder, fsync_folder
from outpace.core.limits import usable_cores
from outpace.core.network import within
from outpace.core.runfolder import RUNS, RunFolder
from outpace.core.runstate import is_held, last_step, read_state
from outpace.core.units import GIB, MIB, gib
from outpace.data.shards import MANIFEST, open_dataset
from outpace.evals.tasks import hellaswag
from outpace.ops.attention import is_materialised, sdpa
from outpace.runtime.compile import why_not as compile_why_not
from outpace.runtime.driver import driver_version, unusable_gpu
from outpace.runtime.hardware import detect
from outpace.runtime.precision import DTYPES
from outpace.tokenizer import get_tokenizer
from outpace.tools.audit import audit_run
from outpace.train.corpus import DATA
from outpace.train.forecast import STATE_BYTES

PYTHON, TORCH = (3, 11), ((2, 11), (2, 16))
"""Oldest Python; oldest torch, and the first that is too new. As in pyproject.toml."""
CHECKPOINT_BYTES = STATE_BYTES * 124_439_808
"""Weights and two moments of the 124M model in fp32."""
CHECKPOINTS = 3
"""Two that are kept, and one that is being written."""
TRAINING_BYTES = 4 * GIB
"""Weights, gradients and moments of the 124M model, and activations of a small micro-batch."""
NAME_S = 5
"""For looking up this host's name."""
SMALL_BYTES = 64 * MIB
"""Size of /dev/shm in a container by default; too small for nccl with several GPUs."""


@dataclass(frozen=True)
class Finding:
    """A fact about this machine or a run."""

    check: str
    found: str
    verdict: str = "ok"
    """ok, warning (training works, but worse than it could) or fault (it will fail)."""
    do: str = ""
    error: OutpaceError | None = None
    """The error of a fault."""

    def record(self) -> dict[str, Any]:
        code = self.error.exit_code if self.error else None
        fields = {k: getattr(self, k) for k in ("check", "found", "verdict", "do")}
        return fields | {"exit_code": code}


def warning(check: str, found: str, do: str) -> Finding:
    return Finding(check, found, "warning", do)


def fault(check: str, error: OutpaceError) -> Finding:
    return Finding(check, error.what, "fault", error.do, error)


def examine(run: Path | None = None) -> Iterator[Finding]:
    """Check this machine, runs/ and data/ in the working folder, and the run `run`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from _versions()
    yield from _threads()
    yield from _memory()
    yield from _gpus()
    yield from _kernels(device)
    yield from _places()
    yield from _shared_memory()
    yield from _host_name()
    yield from _vocabulary()
    yield from _data()
    yield from _runs(but=run)
    if run is not None:
        yield from _run(RunFolder(run))


def _versions() -> Iterator[Finding]:
    for name, version, least, beyond in (
        ("Python", platform.python_version(), PYTHON, None),
        ("torch", torch.__version__, *TORCH),
    ):
        own = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
        needs = ".".join(map(str, least)) + (f" to {beyond[0]}.{beyond[1] - 1}" if beyond else "+")
        if own < least:
            error = UsageError("VERSION", f"{version} is too old", do=f"install {name} {needs}")
            yield fault(name, error)
        elif beyond and own >= beyond:
            yield warning(
                name, f"{version} is newer than the tested versions", f"use {name} {needs}"
            )
        else:
            yield Finding(name, f"{version}, supported are {needs}")


def _threads() -> Iterator[Finding]:
    cores, threads = usable_cores(), torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS")
    found = f"torch uses {threads} on {cores} cores, OMP_NUM_THREADS {asked or 'not set'}"
    if threads > cores:
        yield warning(
            "threads",
            found,
            f"export OMP_NUM_THREADS={cores}: more threads than cores wait for each other",
        )
    elif threads == 1 and cores > 3 and not torch.cuda.is_available():
        yield warning("threads", found, f"export OMP_NUM_THREADS={cores}, to train on all cores")
    else:
        yield Finding("threads", found)


def _memory() -> Iterator[Finding]:
    machine = detect("cpu")
    found = f"{gib(machine.available_bytes)} free of {gib(machine.memory_bytes)}"
    if machine.available_bytes < TRAINING_BYTES and not torch.cuda.is_available():
        do = f"the 124M model takes about {gib(TRAINING_BYTES)}: end other programs, or train less"
        yield warning("memory", found, do)
    else:
        yield Finding("memory", found)


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        if why_not := unusable_gpu():
            yield warning("GPU", f"there is one, but {why_not[0]}", why_not[1])
        else:
            yield Finding("GPU", "none; training on the CPU")
        return
    driver = f"driver {driver_version() or 'unknown'}, torch for CUDA {torch.version.cuda}"
    for i in range(torch.cuda.device_count()):
        name, check, why = torch.cuda.get_device_name(i), f"GPU {i}", "a wrong product"
        try:
            free, total = torch.cuda.mem_get_info(i)
            ones = torch.ones(64, 64, device=f"cuda:{i}")
            right = bool((ones @ ones == 64).all())
        except RuntimeError as error:
            right, free, total, why = False, 0, 0, first_line(error)
        if not right:
            do = "restart the machine, or leave this GPU out with CUDA_VISIBLE_DEVICES"
            yield fault(
                check, UsageError("GPU", f"{name} does not compute ({why}, {driver})", do=do)
            )
        elif free < TRAINING_BYTES:
            found = f"{name}, {gib(free)} free of {gib(total)}, {driver}"
            yield warning(check, found, "end other programs on it (nvidia-smi)")
        else:
            yield Finding(check, f"{name}, {gib(free)} free of {gib(total)}, {driver}")


def _kernels(device: torch.device) -> Iterator[Finding]:
    half = "bf16" if device.type == "cpu" or detect(device.type).bf16 else "fp16"
    kernels = {p: sdpa.kernel(device, DTYPES[p], 64, 0.0) for p in ("no", half)}
    found = f"fp32 {kernels['no']}, {half} {kernels[half]} on {device.type}"
    if any(map(is_materialised, kernels.values())):
        yield warning("attention", found, "this torch has no fused kernel here: use another")
    else:
        yield Finding("attention", found)
    started = time.monotonic()
    if why := compile_why_not(device):
        yield warning("torch.compile", why, "train without it (--compile off), or fix the above")
    else:
        yield Finding("torch.compile", f"works; a probe took {time.monotonic() - started:.1f} s")


def _places() -> Iterator[Finding]:
    """The folders of runs, data and temporary files: their space, and whether fsync, rename and
    locks work there."""
    needs = {
        RUNS: (CHECKPOINTS * CHECKPOINT_BYTES, CHECKPOINT_BYTES),
        DATA: (GIB, 0),
        Path(tempfile.gettempdir()): (GIB, 0),
    }
    seen = set()
    for place, (enough, least) in needs.items():
        folder = existing_folder(place)
        check = f"{place}/" if place in (RUNS, DATA) else "TMPDIR"
        yield _space(check, folder, enough, least)
        if folder not in seen:
            yield from _file_system(check, folder)
        seen.add(folder)


def _space(check: str, folder: Path, enough: int, least: int) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{gib(free)} free in {folder}"
    if free < least:
        do = f"free space: one checkpoint of the 124M model takes {gib(least)}"
        return fault(check, StorageError("SPACE", found, do=do))
    if free < enough:
        return warning(check, found, f"free space: {gib(enough)} are needed to be safe")
    return Finding(check, found)


def _file_system(check: str, folder: Path) -> Iterator[Finding]:
    """Test locks, and fsync with rename, in a temporary folder."""
    try:
        with tempfile.TemporaryDirectory(prefix=".outpace-doctor-", dir=folder) as own:
            a, b = Path(own, "a"), Path(own, "b")
            b.write_bytes(b"old")
            with open(a, "wb") as f:
                f.write(b"new")
                f.flush()
                os.fsync(f.fileno())
            os.replace(a, b)
            fsync_folder(Path(own))
            renamed = b.read_bytes() == b"new" and not a.exists()
            locks = _locks_work(RunFolder(Path(own)))
    except OSError as error:
        what = f"cannot write in {folder}: {error.strerror or error}"
        yield fault(check, StorageError("WRITE", what, do="mount it writable, or work elsewhere"))
        return
    if not renamed:
        what = f"after a rename, a file in {folder} has the wrong content"
        yield fault(check, StorageError("RENAME", what, do="work on a local disk"))
    if not locks:
        do = "do not start a run twice, or work on a file system with flock"
        yield warning(check, f"the file system of {folder} has no locks", do)


def _locks_work(folder: RunFolder) -> bool:
    """Whether a held lock is visible to others."""
    try:
        lock = folder.lock()
    except OSError:
        return False
    try:
        return is_held(folder)
    finally:
        lock.release()


def _shared_memory() -> Iterator[Finding]:
    if sys.platform != "linux" or not Path("/dev/shm").is_dir():
        return
    size = psutil.disk_usage("/dev/shm").total
    if size <= SMALL_BYTES and torch.cuda.device_count() > 1:
        yield warning("/dev/shm", gib(size), "give nccl room: docker run --shm-size 1g")
    else:
        yield Finding("/dev/shm", gib(size))


def _host_name() -> Iterator[Finding]:
    """torchrun waits without end for processes of a host whose name does not resolve."""
    name = socket.getfqdn()
    try:
        within(NAME_S, socket.getaddrinfo, name, None)
    except OSError as error:
        what = f"{name} does not resolve ({first_line(error)}): torchrun would wait without end"
        do = "add it to /etc/hosts; on one host, torchrun --local_addr 127.0.0.1"
        yield warning("host name", what, do)
    else:
        yield Finding("host name", f"{name} resolves")


def _vocabulary() -> Iterator[Finding]:
    try:
        tokenizer = get_tokenizer("gpt2")
    except DataError as error:
        yield fault("vocabulary", error)
    else:
        yield Finding("vocabulary", f"GPT-2's {tokenizer.vocab_size:,} tokens, hash right")


def _data() -> Iterator[Finding]:
    if not Path(HELLASWAG_PATH).exists():
        yield Finding("HellaSwag", "not prepared, so not scored (outpace prepare hellaswag)")
    else:
        yield _checked("HellaSwag", _questions)
    prepared = sorted(path.parent for path in DATA.glob(f"*/{MANIFEST}"))
    if not prepared:
        yield Finding("datasets", "none prepared; training would prepare pydocs")
    for folder in prepared:
        yield _checked(str(folder), partial(_tokens, folder))


def _questions() -> str:
    return f"{len(hellaswag.load(Path(HELLASWAG_PATH))):,} questions, hash right"


def _tokens(folder: Path) -> str:
    dataset = open_dataset(folder)
    return f"{dataset.tokens('train'):,} training tokens of {dataset.tokenizer}, sizes right"


def _checked(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, look())
    except OutpaceError as error:
        return fault(check, error)


def _runs(but: Path | None) -> Iterator[Finding]:
    """The state of each run, except the one that is checked by itself."""
    for root in sorted(path.parent for path in RUNS.glob("*/STATUS.json")):
        if but is None or root.resolve() != but.resolve():
            yield from _state(RunFolder(root))


def _state(run: RunFolder) -> Iterator[Finding]:
    try:
        state = read_state(run)
    except UsageError as error:
        yield fault(str(run.root), error)
        return
    found = f"{state['state']}, step {last_step(state)}"
    if state["held"]:
        found += f", lock held by process {state.get('pid')} on {state.get('host')}"
    if state["state"] in ("interrupted", "failed"):
        yield warning(str(run.root), f"{found}: {state.get('reason')}", "run its command again")
    else:
        yield Finding(str(run.root), found)


def _run(run: RunFolder) -> Iterator[Finding]:
    """One run: its state, its checkpoints' hashes, and space for the next ones."""
    yield from _state(run)
    for one in audit_run(run):
        if one.fault:
            do = "restore it from a copy; training continues from the newest undamaged one"
            yield fault(one.name, CheckpointError("CKPT-BAD", f"{one.name}: {one.fault}", do=do))
        else:
            yield Finding(one.name, "whole, every hash is right")
    if paths := store.paths(run.checkpoints):
        size = sum(file.stat().st_size for file in paths[-1].iterdir())
        yield _space(str(run.root), run.checkpoints, CHECKPOINTS * size, size)
