"""The commit protocol: how a checkpoint comes to be, is checked, found and let go.

    checkpoints/step-00001000/model.safetensors  optimizer.safetensors  state.json  MANIFEST.json

Saving: a temporary folder; each file hashed while it is written, then fsynced; the manifest with
size and SHA-256 of each file and a hash of itself, fsynced; fsync of the folder; rename to its
final name, which never overwrites; fsync of the parent. Only then is it committed, and only then
are older ones let go. A kill or power loss at any point leaves the older checkpoints and, at most,
a temporary folder that the next start removes.

Tensors are safetensors and all else JSON: loading runs no code.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from outpace.core.errors import CheckpointError
from outpace.core.files import fsync_folder, sha256_file, storage_error
from outpace.core.log import warn

FORMAT = 1
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json",
)  # fmt: skip
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"\.(tmp|del)-[0-9]+-[0-9a-f]{8}")
_DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    state: dict[str, Any]

    def model(self, device: torch.device) -> dict[str, torch.Tensor]:
        return load_file(self.path / MODEL, device=str(device))

    def optimizer(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Moments by parameter; CheckpointError for a checkpoint of weights alone."""
        if not (self.path / OPTIMIZER).exists():
            raise CheckpointError(
                "WEIGHTS-ONLY", f"{self.path} holds weights only", do="use it with --init_from"
            )
        return load_file(self.path / OPTIMIZER, device=str(device))


def save(folder: Path, step: int, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> Path:
    """Commit a checkpoint of `step` below `folder` and return its path.

    `tensors` maps file names to tensors by name. Raises StorageError, leaving nothing behind, when
    the disk is full or fails, and CheckpointError when that step is already there.
    """
    return save_as(folder / f"step-{step:08d}", step, tensors, state)


def save_as(final: Path, step: int, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> Path:
    """`save` under a name of one's own."""
    folder = final.parent
    temporary = folder / f".tmp-{step}-{uuid.uuid4().hex[:8]}"
    if final.exists():
        raise CheckpointError("CKPT-EXISTS", f"{final} is already there", do="choose another name")
    try:
        temporary.mkdir(parents=True)
        files = {name: _write_tensors(temporary / name, t) for name, t in tensors.items()}
        files[STATE] = _write(temporary / STATE, [_json(state)])
        body = {"format": FORMAT, "step": step, "files": files}
        manifest = {**body, "sha256": hashlib.sha256(_json(body)).hexdigest()}
        _write(temporary / MANIFEST, [_json(manifest)])
        fsync_folder(temporary)
        os.rename(temporary, final)
        fsync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise storage_error(final, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def fault(path: Path) -> str | None:
    """Why the folder is not a whole checkpoint, or None when every hash is right."""
    try:
        if (path / MANIFEST).stat().st_size > 1_000_000:
            return "its manifest is too large"
        manifest = json.loads((path / MANIFEST).read_text())
        body = {k: v for k, v in manifest.items() if k != "sha256"}
        if hashlib.sha256(_json(body)).hexdigest() != manifest["sha256"]:
            return "its manifest is damaged"
        if body["format"] != FORMAT:
            return f"its format {body['format']!r} is not {FORMAT}"
        if {p.name for p in path.iterdir()} != {MANIFEST, *body["files"]}:
            return "files are missing or were added"
        for name, entry in body["files"].items():
            if (path / name).stat().st_size != entry["bytes"]:
                return f"{name} has the wrong size"
            if sha256_file(path / name) != entry["sha256"]:
                return f"{name} does not have the SHA-256 it was written with"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({type(error).__name__}: {error})"
    return None


def load(path: Path) -> Checkpoint:
    """Verify every hash of one checkpoint, and open it; CheckpointError when it is damaged."""
    if why := fault(path):
        raise CheckpointError("CKPT-BAD", f"{path}: {why}", do="use another checkpoint of the run")
    return _open(path)


def _open(path: Path) -> Checkpoint:
    manifest = json.loads((path / MANIFEST).read_text())
    return Checkpoint(path, int(manifest["step"]), json.loads((path / STATE).read_text()))


def latest(folder: Path, *, set_aside: bool = True) -> Checkpoint | None:
    """The newest checkpoint that verifies; None when there never was one. Bad newer ones are warned
    of, and renamed out of the way with `set_aside`, which needs the run's lock; when none is good,
    CheckpointError: training never restarts silently."""
    bad: list[tuple[Path, str]] = []
    for path in reversed(paths(folder)):
        if (why := fault(path)) is None:
            for other, reason in bad:
                warn(f"[CKPT-BAD] {other.name}: {reason}; going on from {path.name}")
                if set_aside:
                    os.rename(other, other.with_name(f"bad-{other.name}-{uuid.uuid4().hex[:8]}"))
            return _open(path)
        bad.append((path, why))
    if bad:
        raise CheckpointError(
            "NO-GOOD-CKPT",
            f"none of the {len(bad)} checkpoints in {folder} is whole "
            f"({bad[0][0].name}: {bad[0][1]})",
            kept="all of them, untouched",
            do="restore one from a copy, or start again in another --run_dir",
        )
    return None


def paths(folder: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first, whole or not; links are not followed."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for _, path in sorted(found)]


def prune(folder: Path, keep: int, *, committed: Path | None = None) -> None:
    """Let go of the oldest until `keep` are left that verify; those that do not never count.
    `committed` was hashed while it was just written, and is not read again."""
    good = 0
    for path in reversed(paths(folder)):
        if good < keep:
            good += path == committed or fault(path) is None
        else:
            doomed = folder / f".del-{uuid.uuid4().int % 10**6}-{uuid.uuid4().hex[:8]}"
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed save or prune left, and only that. Call with the run's lock held."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def weights_sha256(tensors: Tensors) -> str:
    """SHA-256 over names, shapes and bytes, in order of name: equal weights, equal hash."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(_raw(tensors[name]))
    return digest.hexdigest()


def _write_tensors(path: Path, tensors: Tensors) -> dict[str, Any]:
    """Write the safetensors format in one pass, hashing, with no copy of all tensors in memory:
    length of the header (u64), header in JSON padded to 8 bytes, then the raw tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def parts() -> Iterator[bytes | memoryview]:
        yield struct.pack("<Q", len(text)) + text
        for tensor in tensors.values():
            yield _raw(tensor)

    return _write(path, parts())


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, little-endian and contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy()
    return memoryview(raw)  # type: ignore[arg-type]  # NumPy 2's stubs ask for Python 3.12


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as f:
        for part in parts:
            f.write(part)
            digest.update(part)
            size += len(part)
        f.flush()
        os.fsync(f.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
