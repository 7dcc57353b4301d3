"""Test and measure a GPU within nine minutes, using only installed packages:

    make gpu-check                        (or: python benchmarks/gpu_check.py)

    PEERS=DIR    checkouts to compare with, in DIR/nanoGPT, DIR/llm.c, DIR/modded-nanogpt; llm.c's
                 train_gpt2cu too, if it is built there
    TEXT=DIR     text files to train on, if no dataset is prepared below data/
    OUT=DIR      folder of the JSON results; by default OUTPACE_RESULTS, else results/
    MINUTES=8.6  wall time for all stages together
    STAGES=...   only these stages, such as "ladder compare", which then share all the time

Stages run in order of importance, each in its own process with a time limit. A stage that cannot
run here is left out with the reason; one that runs out of time is ended, and the next one starts.
The exit code is 0 if nothing failed. On a machine without a GPU, the same stages run on the CPU
with smaller models.
"""

import contextlib
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from outpace.core.children import end, send, start  # noqa: E402  (needs no package)
from outpace.core.crash import last_error  # noqa: E402

NEEDED = {
    "torch": "everything",
    "numpy": "everything",
    "tyro": "every outpace command",
    "docstring_parser": "tyro",
    "typeguard": "tyro",
    "rich": "every outpace command",
    "psutil": "every outpace command",
    "safetensors": "training, so all but the GPU tests",
    "filelock": "preparing text",
    "pyarrow": "preparing text from parquet",
    "tiktoken": "preparing text, and llm.c",
    "transformers": "the comparison with transformers",
    "plotly": "the report and the profile's plot",
    "pytest": "the GPU tests",
}
"""Package -> what needs it; includes dependencies of dependencies that a machine may lack."""
CHECKOUTS = {"nanogpt": "nanoGPT", "llmc": "llm.c", "modded": "modded-nanogpt"}
LIMITS = {
    "prepare": 75.0, "tests": 60.0, "train": 120.0, "kernels": 60.0, "ladder": 165.0,
    "compare": 165.0, "profile": 90.0, "memory": 90.0,
}  # fmt: skip
"""Stage -> seconds, the most important first; each process compiles for about half a minute. For a
whole ladder or a race of all peers set STAGES to that stage, and MINUTES; or run `outpace bench
ladder`."""
SMALL = [
    "--n_layer", "2", "--n_head", "2", "--n_embd", "64", "--context", "64",
    "--micro_batch_size", "2",
]  # fmt: skip
"""A model that a CPU trains within seconds."""
READERS = {"train", "ladder", "compare", "profile"}
"""Stages that need a prepared dataset."""
LEAST_S = 15.0
"""A stage is skipped if less time than this is left."""
ASKED = ("MINUTES", "STAGES", "PEERS", "TEXT", "OUT")
"""Environment variables that this script reads, as above."""


@dataclass
class Stage:
    """One stage and its outcome."""

    name: str
    limit_s: float
    command: list[str] = field(default_factory=list)
    outcome: str = "skipped"
    """ok, failed, out of time, interrupted or skipped."""
    seconds: float = 0.0
    reason: str = ""
    result: str | None = None
    """Its JSON file."""
    log: str = ""
    """The end of its output."""


class Check:
    """The machine, the folders, and the stages so far."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.limit_s = 60 * float(os.environ.get("MINUTES", "8.6"))
        self.wanted = {*(os.environ.get("STAGES", "").split() or LIMITS)}
        # If only some stages are wanted, they share the time of all.
        asked_s = sum(LIMITS.get(name, 0.0) for name in self.wanted - {"prepare"}) or 1.0
        scale = max(1.0, self.limit_s / asked_s)
        self.limits = {name: scale * s for name, s in LIMITS.items()}
        self.out = Path(
            os.environ.get("OUT") or os.environ.get("OUTPACE_RESULTS") or ROOT / "results"
        ).absolute()
        self.scratch = Path(tempfile.mkdtemp(prefix="outpace-gpu-check-"))
        self.missing = [p for p in NEEDED if importlib.util.find_spec(p) is None]
        self.gpu_bytes = 0 if "torch" in self.missing else _gpu_bytes()
        self.gpu = self.gpu_bytes > 0
        self.device = "cuda" if self.gpu else "cpu"
        self.dataset: Path | None = None
        self.stages: list[Stage] = []

    @property
    def left_s(self) -> float:
        return self.limit_s - (time.monotonic() - self.begin)

    def lacks(self, *packages: str) -> str:
        """The missing ones of `packages` in words; empty if there are none."""
        return ", ".join(f"no {p}" for p in packages if p in self.missing)

    def run(self, name: str, make: Callable[[], list[str] | str]) -> Stage:
        """Run the command that `make` returns, or skip the stage for the reason that it returns."""
        stage = Stage(name, min(self.limits[name], self.left_s))
        self.stages.append(stage)
        made = make()
        if isinstance(made, str):
            stage.reason = made
        elif stage.limit_s < LEAST_S:
            stage.reason = "no time left"
        else:
            self._run(stage, made)
        tell(f"{stage.name}: {stage.outcome} ({stage.seconds:.0f} s) {stage.reason}")
        self.write()
        return stage

    def _run(self, stage: Stage, command: list[str]) -> None:
        stage.command = ["python", *command[1:]] if command[0] == sys.executable else command
        tell(f"\n== {stage.name}, at most {stage.limit_s:.0f} s: {' '.join(stage.command)}")
        log = self.scratch / f"{stage.name}.log"
        begin = time.monotonic()
        stage.outcome, code = "interrupted", None  # until it has ended
        process = start(command, log, cwd=ROOT, env=os.environ | {"PYTHONPATH": _path()})
        try:
            code = process.wait(stage.limit_s)
            stage.outcome = "ok" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            stage.outcome = "out of time"
        finally:
            _end(process, summarises="pytest" in command)
            stage.seconds = time.monotonic() - begin
            text = log.read_text(errors="replace")
            stage.log = text[-60_000:]
        tell(text[-6000:].rstrip())
        if stage.outcome == "failed":
            stage.reason = f"exit code {code}: {last_error(text)[:300] or 'it printed nothing'}"
        elif stage.outcome == "out of time" and (failed := failures(text)):
            stage.outcome = "failed"
            stage.reason = f"out of time after {len(failed)} failures: {', '.join(failed)}"[:600]
        where = command[command.index("--output") + 1] if "--output" in command else None
        if where and Path(where).is_file():
            stage.result = where

    def write(self) -> None:
        body = {
            "benchmark": "gpu-check",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "asked": {name: os.environ[name] for name in ASKED if name in os.environ},
            "python": sys.version.split()[0],
            "device": self.device,
            "seconds": time.monotonic() - self.begin,
            "missing_packages": {p: NEEDED[p] for p in self.missing},
            "stages": [asdict(s) for s in self.stages],
        }
        (self.out / "gpu-check.json").write_text(json.dumps(body, indent=2) + "\n")

    def clean(self) -> None:
        """Remove the data and the run with its checkpoint; keep the logs if a stage failed."""
        failed = any(s.outcome == "failed" for s in self.stages)
        for what in (self.scratch / "data", self.scratch / "run") if failed else (self.scratch,):
            shutil.rmtree(what, ignore_errors=True)

    # Each of the following returns its command, or the reason why it cannot run.

    def prepare(self) -> list[str] | str:
        if why := self.lacks("tyro", "rich", "tiktoken", "filelock"):
            return why
        prepared = sorted((ROOT / "data").glob("*/manifest.json"))
        if prepared:
            best = next((m for m in prepared if m.parent.name == "openwebtext"), prepared[0])
            self.dataset = best.parent
            return f"data/{best.parent.name} is prepared"
        self.dataset = self.scratch / "data"
        flags = ["--output", str(self.dataset)]
        text = os.environ.get("TEXT") or ROOT.parent / "shared" / "data" / "novels"
        if Path(text).is_dir():
            return outpace("prepare", "files", "--input", str(text), *flags)
        return outpace("prepare", "pydocs", *flags)

    def ladder(self) -> list[str] | str:
        if why := self.needs_data():
            return why
        # Besides these minutes, it needs time to choose attention and loss, and to write the
        # result.
        budget = f"{max(30, min(self.limits['ladder'], self.left_s) - 45) / 60:.2f}"
        # A second call continues the result file of the first, if it still exists.
        flags = ["--dataset", str(self.dataset), "--minutes", budget, "--drift_steps", "20"]
        return self.bench("ladder", "--resume", *flags)

    def compare(self) -> list[str] | str:
        if why := self.needs_data():
            return why
        peers = [
            word for name, folder in self.checkouts().items() for word in (f"--{name}", str(folder))
        ]
        if "transformers" not in self.missing:
            peers.append("--transformers")
        if not peers:
            return "no transformers, and no peers in the folder PEERS"
        # Leaves time for a last window and for writing the result.
        minutes = f"{max(60, min(self.left_s, self.limits['compare']) - 30) / 60:.2f}"
        pace = ["--window_s", "10", "--rounds", "1", "--warmup_steps", "5", "--minutes", minutes]
        pace += ["--gradient_accumulation_steps", "4" if self.gpu else "1"]
        return self.bench("compare", "--dataset", str(self.dataset), *peers, *pace)

    def checkouts(self) -> dict[str, Path]:
        """Peers in the folder PEERS; an incomplete checkout is left out."""
        from outpace.bench.peers import check_checkout
        from outpace.core.errors import UsageError

        found = {}
        for name, sub in CHECKOUTS.items():
            folder = Path(os.environ.get("PEERS", "nowhere"), sub).absolute()
            if folder.is_dir():
                try:
                    check_checkout(name, folder)
                except UsageError as error:
                    tell(f"{name} is left out: {error.what}")
                else:
                    found[name] = folder
        return found

    def kernels(self) -> list[str] | str:
        # --quick keeps no calibration: with so few tokens on a CPU it would mislead `outpace plan`.
        pace = ["--seconds", "0.5"] if self.gpu else ["--quick", "--tokens", "512"]
        return self.lacks("tyro", "rich") or self.bench("kernels", *pace)

    def profile(self) -> list[str] | str:
        if why := self.needs_data():
            return why
        flags = ["--gradient_accumulation_steps", "1", "--max_steps", "100"]
        flags += ["--micro_batch_size", "32"] if self.gpu else [*SMALL, "--compile", "off"]
        where = ["--trace", str(self.out / f"profile-{self.device}.trace.json.gz")]
        where += ["--plot", str(self.out / f"profile-{self.device}.html")]
        return self.bench("profile", "--dataset", str(self.dataset), *flags, *where)

    def tests(self) -> list[str] | str:
        if why := self.lacks("pytest", "tyro", "rich", "safetensors"):
            return why
        if not self.gpu:
            return "no GPU"
        # Our own kernels first. The rest is 200 compilations, shared by several processes.
        # -vv (over the -q in pyproject.toml) prints each result at once: time may run out.
        files = sorted(
            (file.relative_to(ROOT) for file in (ROOT / "tests" / "gpu").glob("test_*.py")),
            key=lambda file: (file.name != "test_kernels.py", file),
        )
        several = self.gpu_bytes > 40e9 and importlib.util.find_spec("xdist")
        flags = ["-vv", "--tb=short", "-m", "gpu", *(("-n", "4") if several else ())]
        where = [*map(str, files), "tests/conformance"]
        return [sys.executable, "-m", "pytest", *flags, *where]

    def train(self) -> list[str] | str:
        if why := self.needs_data():
            return why
        # The command in README.md, shortened; on a CPU with a smaller model.
        flags = ["--model_size", "124M", "--mixed_precision", "bf16", "--use_flash_attention"]
        flags += ["--gradient_accumulation_steps", "8"]
        flags += ["--hellaswag_limit", "0", "--sample_tokens", "16", "--val_tokens", "65536"]
        small = [*SMALL, "--max_steps", "5", "--compile", "off"]
        run = ["--max_steps", "12", "--eval_every_steps", "6", "--save_every_steps", "12"]
        flags += run if self.gpu else small
        where = ["--dataset", str(self.dataset), "--run_dir", str(self.scratch / "run")]
        return [sys.executable, "train.py", *flags, *where]

    def memory(self) -> list[str] | str:
        return self.lacks("tyro", "rich") or self.bench("memory", "--measure", "--parts", "step")

    def bench(self, what: str, *flags: str) -> list[str]:
        output = self.out / f"{what}-{self.device}.json"
        return outpace("bench", what, *flags, "--output", str(output))

    def needs_data(self) -> str:
        if why := self.lacks("tyro", "rich", "safetensors"):
            return why
        there = self.dataset and (self.dataset / "manifest.json").is_file()
        return "" if there else "no text was prepared"


def main() -> int:
    check = Check()
    try:
        return run(check)
    finally:
        check.clean()


def run(check: Check) -> int:
    wanted = {"prepare", *check.wanted} if check.wanted & READERS else check.wanted
    if unknown := wanted - {*LIMITS}:
        print(f"error[STAGES]: no stage {', '.join(unknown)}; do: choose from {' '.join(LIMITS)}")
        return 2
    try:
        check.out.mkdir(parents=True, exist_ok=True)
        check.write()
    except OSError as error:
        print(f"error[STORAGE]: cannot write to {check.out}: {error.strerror}; do: set OUT=DIR")
        return 5
    tell(f"device {check.device}; results in {check.out}; logs in {check.scratch}")
    for package in check.missing:
        tell(f"{package} is not installed; it is needed for {NEEDED[package]}")
    if check.missing:
        tell(
            "to provide them without installing: on a machine with a network, `pip download` the "
            "wheels and unpack them into a folder DIR (pip install --target DIR *.whl), then "
            "PYTHONPATH=DIR make gpu-check"
        )
    if lost := check.lacks("torch", "numpy"):
        print(f"error[NO-TORCH]: {lost} in {sys.executable}; do: make gpu-check PYTHON=PYTHON")
        return 2
    if lost := check.lacks("tyro", "docstring_parser", "typeguard", "rich", "psutil"):
        print(f"error[NO-TOOLS]: {lost}, and every stage needs them; do: provide them as above")
        return 2
    if not check.gpu:
        tell("no GPU: smaller stages run on the CPU; their numbers say nothing about a GPU")
    try:
        for name in LIMITS:
            if name in wanted:
                check.run(name, getattr(check, name))
    except KeyboardInterrupt:
        check.write()
        tell(f"\ninterrupted; the measurements so far are in {check.out}")
        return 130
    tell(f"\n{'stage':<10}{'outcome':<14}{'seconds':>8}  ")
    for s in check.stages:
        tell(f"{s.name:<10}{s.outcome:<14}{s.seconds:>8.0f}  {s.reason or s.result or ''}")
    tell(f"{time.monotonic() - check.begin:.0f} s; {check.out / 'gpu-check.json'}")
    return int(any(s.outcome == "failed" for s in check.stages))


def failures(text: str) -> list[str]:
    """The failed tests in the output of `pytest -v`, even if it was ended early; with or without
    xdist."""
    found = re.findall(
        r"^(?:\[gw.*\] )?FAILED (tests/.*?)(?: - .*)?$|^(tests/.*) FAILED", text, re.M
    )
    return list(dict.fromkeys((a or b).rstrip() for a, b in found))


def tell(text: str) -> None:
    print(text, flush=True)


def outpace(*words: str) -> list[str]:
    return [sys.executable, "-m", "outpace", *words]


def _path() -> str:
    """PYTHONPATH with this checkout first."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _gpu_bytes() -> int:
    """Memory of the GPU, 0 if there is none. Asked in a separate process, because a CUDA context
    here would take memory from the stages."""
    code = "import torch; print(torch.cuda.is_available() and torch.cuda.mem_get_info()[1])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    said = answer.stdout.split()
    return int(said[-1]) if said and said[-1].isdigit() else 0


def _end(process: subprocess.Popen[bytes], *, summarises: bool = False) -> None:
    """End a stage with all its processes; a stopped one must continue to receive the signal. One
    that `summarises` when interrupted, like pytest, is interrupted first, so that its failures are
    known."""
    if summarises and process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    send(process, signal.SIGTERM)
    send(process, signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    end(process)


if __name__ == "__main__":
    sys.exit(main())
