"""The registry of peers. A peer's module says how to run the peer's own, unchanged code at its
best:

    LABEL                             its common name
    FILES                             files that its checkout must have; none for a package
    why_not(job)                      reason it cannot run this job, or None
    contestants(checkout, job, folder)   the settings worth racing, staged in the new `folder`

Nothing is copied from a checkout or written into it: a staged folder links its files.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from outpace.config.presets import GPT2Shape
from outpace.core.errors import UsageError
from outpace.core.files import sha256_file
from outpace.core.registry import Registry
from outpace.data.shard_file import header
from outpace.data.shards import Dataset
from outpace.data.stream import TokenStream
from outpace.tokenizer.gpt2 import VOCAB_FOLDER

PEERS = Registry(
    "peer",
    {
        "outpace": "outpace.bench.peers.ours",
        "nanogpt": "outpace.bench.peers.nanogpt",
        "llmc": "outpace.bench.peers.llmc",
        "llmc_c": "outpace.bench.peers.llmc_c",
        "llmc_cuda": "outpace.bench.peers.llmc_cuda",
        "modded": "outpace.bench.peers.modded",
        "transformers": "outpace.bench.peers.huggingface",
    },
)
STEPS = 100_000
"""More steps than are ever timed; the process is ended before."""
MOST_TOKENS = 1 << 28
"""Most tokens copied for a peer that cannot read shards: half a gigabyte, more than a comparison
trains on."""
TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
"""The address from which tiktoken downloads GPT-2's files (tiktoken_ext/openai_public.py)."""


@dataclass(frozen=True)
class Job:
    """The training that all contestants run. Learning rates do not matter for speed."""

    shape: GPT2Shape
    dataset: Dataset
    micro_batch_size: int
    gradient_accumulation_steps: int
    device: str
    """cpu or cuda."""
    flags: tuple[str, ...] = ()
    """Further flags for outpace's own training."""

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps * self.shape.context


@dataclass(frozen=True)
class Contestant:
    """One command to time."""

    name: str
    """Its row in the table; `NAME (SETTING)` if the peer has several settings."""
    setting: str
    """Its settings, in words."""
    command: list[str]
    step_ms: Callable[[str], list[float]]
    """Text of its log -> milliseconds of each step so far, by the peer's own clock."""
    tokens_per_step: int
    flops_per_token: float
    cwd: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    progress: Path | None = None
    """File with its step lines; None: its log."""
    scratch: Path | None = None
    """Folder that is removed before each start."""


def check_checkout(name: str, checkout: Path) -> None:
    """UsageError if `checkout` is not a checkout of the peer `name`, with the missing files."""
    peer = PEERS.load(name)
    missing = [file for file in peer.FILES if not (checkout / file).is_file()]
    if missing:
        raise UsageError(
            f"NOT-{name.upper()}",
            f"{checkout} is not a {peer.LABEL} checkout: it has no {', '.join(missing)}",
            do=f"git clone {peer.LABEL} and name its folder",
        )


def digests(name: str, checkout: Path) -> dict[str, str]:
    """SHA-256 of the files that are run from a peer's checkout."""
    return {file: sha256_file(checkout / file) for file in PEERS.load(name).FILES}


def link(checkout: Path, files: tuple[str, ...], folder: Path) -> None:
    """Link `files` of a checkout into `folder`, without their subfolders."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / Path(file).name).symlink_to((checkout / file).resolve())


def script_of(path: Path) -> ModuleType:
    """Import a peer's script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiktoken_cache(folder: Path) -> Path:
    """A new folder for TIKTOKEN_CACHE_DIR with GPT-2's vocabulary, so that nothing is downloaded.
    tiktoken caches a file under the SHA-1 of its address (tiktoken/load.py)."""
    folder.mkdir(parents=True)
    for name in ("vocab.bpe", "encoder.json"):
        key = hashlib.sha1((TIKTOKEN_URL + name).encode(), usedforsecurity=False).hexdigest()
        (folder / key).symlink_to((VOCAB_FOLDER / name).resolve())
    return folder.resolve()


def write_raw(stream: TokenStream, path: Path) -> None:
    """Write the tokens of a split, at most MOST_TOKENS, as plain uint16."""
    with open(path, "wb") as f:
        for part in _parts(stream, min(len(stream), MOST_TOKENS)):
            f.write(part.tobytes())


def write_shard(stream: TokenStream, path: Path, tokens: int) -> None:
    """Write one shard (`data/shard_file.py`) of exactly `tokens` tokens; a short split is
    repeated."""
    with open(path, "wb") as f:
        f.write(header(tokens))
        for part in _parts(stream, tokens):
            f.write(part.tobytes())


def _parts(stream: TokenStream, tokens: int) -> Iterator[np.ndarray]:
    """`tokens` tokens from the start of a split, which is repeated if it has fewer."""
    at = 0
    while tokens:
        part = np.empty(min(1 << 20, tokens, len(stream) - at), np.uint16)
        stream.read(at, part)
        yield part
        tokens -= len(part)
        at = (at + len(part)) % len(stream)
