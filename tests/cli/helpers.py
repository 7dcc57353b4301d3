"""A run of a second, what a command line did, what changed on disk, and a way to damage it."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TRAIN = [
    "train", "--dataset", "tiny", "--n_layer", "1", "--n_head", "2", "--n_embd", "32",
    "--context", "32", "--micro_batch_size", "2", "--gradient_accumulation_steps", "1",
    "--max_steps", "3", "--compile", "off", "--device", "cpu", "--mixed_precision", "no",
    "--hellaswag_limit", "0", "--sample_tokens", "0", "--val_tokens", "256",
]  # fmt: skip
"""A run of a second, on the dataset `data/tiny`."""
PLAN = ["plan", *TRAIN[1:]]


@dataclass(frozen=True)
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on standard error: the error, when there is one."""
        return self.err.rstrip("\n").rpartition("\n")[2]


Run = Callable[..., Result]


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder with a hash of what it holds."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            content = path.read_bytes() if path.is_file() else b"folder"
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
