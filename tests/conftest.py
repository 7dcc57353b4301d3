"""What every test shares: real text when it is there, tiny datasets, a command line in a folder."""

import hashlib
import http.server
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
TINY = [
    "--n_layer", "2", "--n_head", "2", "--n_embd", "32", "--context", "32",
    "--micro_batch_size", "2", "--gradient_accumulation_steps", "2", "--lr", "1e-3",
    "--compile", "off", "--device", "cpu", "--mixed_precision", "no",
    "--hellaswag_limit", "0", "--sample_tokens", "0", "--val_tokens", "256",
]  # fmt: skip
"""Flags of a model that trains in seconds."""

TEXT = (
    "The {n}th morning was cold, and nobody on the pier had slept. A gull stood on the rail and "
    "looked at the water as if it were owed something. {name} counted the boats, {n} of them, and "
    "went home by the long road, because the short one led past the mill.\n"
)
NAMES = ["Clara", "Felix", "Ursula", "Howard", "Audley", "Thursday", "Brown"]


def free_port() -> int:
    """A port that nothing uses. It is below those that the system gives to outgoing connections,
    one of which might take it before process 0 does."""
    while True:
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", random.SystemRandom().randrange(12_000, 32_000)))
            return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text, or a skip."""
    if not SHARED.is_dir():
        pytest.skip("the real text is not beside the checkout")
    return SHARED


def write_corpus(folder: Path, documents: int = 60) -> Path:
    """A folder of small, different text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        lines = (TEXT.format(n=i * 7 + j, name=NAMES[(i + j) % len(NAMES)]) for j in range(4))
        (folder / f"{i:03d}.txt").write_text("".join(lines))
    return folder


def outpace(
    *arguments: str | Path, cwd: Path, check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `outpace ARGUMENTS` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "outpace", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of bytes: vocabulary 257, some 60,000 tokens. Not to be written to."""
    from outpace.data.prepare import PrepareOptions, prepare
    from outpace.data.sources.files import FilesSource

    folder = tmp_path_factory.mktemp("tiny")
    source = FilesSource([str(write_corpus(folder / "text"))])
    prepare(source, folder / "data", PrepareOptions(tokenizer="bytes", val_fraction=0.1))
    return folder / "data"


@contextmanager
def serving(server: http.server.HTTPServer) -> Iterator[str]:
    """The address of a server on this machine, while it answers."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder but the lock, with its hash."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def final_hash(run: Path) -> str:
    """SHA-256 of a finished run's weights, from its STATUS.json."""
    status = json.loads((run / "STATUS.json").read_text())
    assert status["state"] == "finished", status
    return str(status["weights_sha256"])
