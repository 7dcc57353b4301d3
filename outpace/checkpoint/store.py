"""The commit protocol: how a checkpoint is written, verified and found.

    checkpoints/step-00001000/model.safetensors  optimizer.safetensors  state.json  MANIFEST.json
    checkpoints/LATEST      the newest one's name: a hint for people, never trusted

To save a checkpoint:

1. write each file to a temporary folder, hashing it on the way, and fsync it;
2. write and fsync the manifest: size and SHA-256 of each file, what it is a checkpoint of, and a
   hash of itself;
3. fsync the folder, rename it to its final name, which never overwrites, and fsync the parent.

Only then is it committed, and only then are older ones deleted (retention.py). A kill or power loss
at any point leaves the older checkpoints and, at most, a temporary folder that the next start
removes.

A run that rolled back continues as a new lineage, whose checkpoints are named `step-00001000-r1`.
The newest checkpoint is the one with the highest lineage, then the highest step.

Tensors are safetensors, the rest is JSON: loading runs no code.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from outpace.core.errors import CheckpointError, StorageError
from outpace.core.files import fsync_folder, replace_file, sha256_file
from outpace.core.log import warn
from outpace.core.units import gib

FORMAT = 2
READABLE = (1, 2)
"""Format 1 had no run, lineage, tokens or hashes of settings in its manifest."""
UNKNOWN_FORMAT = "its format is"
"""How `fault` begins for a checkpoint of another release, which may be fine but cannot be judged
here."""
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json",
)  # fmt: skip
LATEST = "LATEST"
SLACK_BYTES = 1 << 18
"""Room for file names, JSON and the file system's metadata, besides the tensors."""
MOST_MANIFEST_BYTES = 1_000_000
_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})(?:-r([1-9][0-9]{0,5}))?")
_TEMPORARY = re.compile(
    r"\.(tmp|del)-[0-9]+-[0-9a-f]{8}"
    r"|\.(LATEST|STATUS\.json|plan\.json|config\.toml|verdict\.json|(report|comparison)\.html"
    r"|(metrics|evals|samples)\.jsonl)\.tmp-[0-9]+-[0-9]+"
)
_DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
UNREADABLE = OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
"""What may be raised by reading a file with arbitrary content."""
NOT_DAMAGE = {
    errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip
"""Errors that do not mean a file is damaged: it cannot be read just now, or by this user."""
LISTINGS = 5
"""How often a reader lists checkpoints again when the run deletes them meanwhile."""
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Origin:
    """What a checkpoint is a checkpoint of; part of its manifest."""

    run: str = ""
    """Random name, made when a run starts and kept through all interruptions."""
    lineage: int = 0
    """How often the run has rolled back."""
    tokens: int = 0
    config_sha256: str = ""
    dataset: str = ""
    environment_sha256: str = ""
    due: bool = False
    """Whether it was saved because of --save_every_steps."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    state: dict[str, Any]
    run: str = ""
    lineage: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """(lineage, step): the higher, the newer."""
        return self.lineage, self.step

    def model(self) -> dict[str, torch.Tensor]:
        return _load_tensors(self.path / MODEL)

    def optimizer(self) -> dict[str, torch.Tensor]:
        """Moments by parameter; CheckpointError if the checkpoint holds only weights."""
        if not (self.path / OPTIMIZER).exists():
            raise CheckpointError(
                "WEIGHTS-ONLY", f"{self.path} holds weights only", do="use it with --init_from"
            )
        return _load_tensors(self.path / OPTIMIZER)


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensors],
    state: dict[str, Any],
    origin: Origin | None = None,
) -> Path:
    """Commit a checkpoint of `step` below `folder` and return its path.

    `tensors` maps file names to tensors by name. Leaving nothing behind, raises StorageError if the
    disk is full or fails, or if `folder` was deleted under the running process, and CheckpointError
    if there already is a checkpoint of that step.
    """
    origin = origin or Origin()
    final = folder / name_of(step, origin.lineage)
    if final.is_symlink() or final.is_file():  # `paths` ignores these
        _set_aside(final)
        warn(f"[CKPT-BAD] {final} is not a folder, and was renamed")
    save_as(final, step, tensors, state, origin)
    with contextlib.suppress(StorageError):  # a hint may be stale
        replace_file(folder / LATEST, final.name + "\n")
    return final


def save_as(
    final: Path,
    step: int,
    tensors: Mapping[str, Tensors],
    state: dict[str, Any],
    origin: Origin | None = None,
) -> Path:
    """`save` under any name, without updating LATEST."""
    folder = final.parent
    temporary = folder / f".tmp-{step}-{uuid.uuid4().hex[:8]}"
    if final.exists():
        raise CheckpointError("CKPT-EXISTS", f"{final} is already there", do="choose another name")
    try:
        check_space(folder, tensors)
        temporary.mkdir()
        files = {name: _write_tensors(temporary / name, t) for name, t in tensors.items()}
        files[STATE] = _write(temporary / STATE, [_json(state)])
        body = {"format": FORMAT, "step": step, **asdict(origin or Origin()), "files": files}
        manifest = {**body, "sha256": hashlib.sha256(_json(body)).hexdigest()}
        _write(temporary / MANIFEST, [_json(manifest)])
        fsync_folder(temporary)
        os.rename(temporary, final)
        try:
            fsync_folder(folder)
        except OSError:
            # Not committed, as a power loss could undo the rename: undo it here.
            with contextlib.suppress(OSError):  # impossible if the disk is read-only by now
                os.rename(final, temporary)
            raise
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            "CKPT-WRITE",
            f"cannot write {final}: {error.strerror or error}",
            kept="the older checkpoints",
            do="free space or repair the disk, then run the same command again",
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def check_space(folder: Path, tensors: Mapping[str, Tensors]) -> None:
    """Raise StorageError if `folder` has no room for a checkpoint of `tensors`."""
    need = SLACK_BYTES + sum(t.nbytes for file in tensors.values() for t in file.values())
    free = shutil.disk_usage(folder).free
    if free < need:
        raise StorageError(
            "CKPT-SPACE",
            f"a checkpoint needs {gib(need)}, {folder} has {gib(free)} free",
            kept="the older checkpoints",
            do="free space, then run the same command again",
        )


def name_of(step: int, lineage: int) -> str:
    """Folder name of a checkpoint."""
    return f"step-{step:08d}" + (f"-r{lineage}" if lineage else "")


def place_of(path: Path) -> tuple[int, int]:
    """(lineage, step) in a checkpoint's name: the higher, the newer."""
    return _parse_name(path) or (0, 0)


def step_of(path: Path) -> int:
    """Step in a checkpoint's name."""
    return place_of(path)[1]


def _parse_name(path: Path) -> tuple[int, int] | None:
    """(lineage, step) of a checkpoint's name; None for any other name."""
    match = _NAME.fullmatch(path.name)
    return (int(match[2] or 0), int(match[1])) if match else None


def fault(path: Path) -> str | None:
    """Why the folder is not a whole checkpoint, or None if every hash is right. StorageError if it
    cannot be read just now."""
    try:
        manifest = read_manifest(path)
        if manifest["format"] not in READABLE:
            return f"{UNKNOWN_FORMAT} {manifest['format']!r} and none of {READABLE}"
        named = _parse_name(path)
        if named and named != written_place(manifest):
            return "it has another checkpoint's name"
        if {p.name for p in path.iterdir()} != {MANIFEST, *manifest["files"]}:
            return "files are missing or were added"
        for name, entry in manifest["files"].items():
            file = path / name
            if file.is_symlink() or not file.is_file():
                return f"{name} is not a regular file"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has the wrong size"
            if sha256_file(file) != entry["sha256"]:
                return f"{name} does not have the SHA-256 it was written with"
        # Anyone can forge matching hashes, so check what is about to be opened.
        if type(manifest["step"]) is not int:
            return "its step is not a number"
        if not isinstance(json.loads((path / STATE).read_bytes()), dict):
            return f"{STATE} is not a JSON object"
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
            raise StorageError(
                "CKPT-UNREADABLE",
                f"cannot read {path}: {error.strerror}",
                kept="all checkpoints, untouched",
                do="check the permissions, the disk or its network, then run it again",
            ) from error
        return f"it cannot be read ({type(error).__name__}: {error})"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; ValueError, KeyError, TypeError or OSError if it is damaged.
    Does not check the other files."""
    if (path / MANIFEST).stat().st_size > MOST_MANIFEST_BYTES:
        raise ValueError("the manifest is too large")
    text = (path / MANIFEST).read_bytes()
    manifest: dict[str, Any] = json.loads(text)
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    # Byte for byte as it was written: no other spacing, no key twice.
    if hashlib.sha256(_json(body)).hexdigest() != manifest["sha256"] or text != _json(manifest):
        raise ValueError("the manifest is damaged")
    return manifest


def written_place(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """(lineage, step) in a manifest; format 1 had no lineage."""
    return manifest.get("lineage", 0), manifest["step"]


def run_of(path: Path) -> str | None:
    """The run in a manifest; "" in format 1, None if it cannot be read."""
    try:
        return str(read_manifest(path).get("run", ""))
    except UNREADABLE:
        return None


def load(path: Path) -> Checkpoint:
    """Verify every hash of one checkpoint, and open it; CheckpointError if it is damaged."""
    if why := fault(path):
        if not path.is_dir():
            raise CheckpointError("NO-CKPT", f"{path} is gone", do="use a newer one of the run")
        _refuse_other_release(path, why)
        raise CheckpointError("CKPT-BAD", f"{path}: {why}", do="use another checkpoint of the run")
    return open_verified(path)


def _refuse_other_release(path: Path, why: str) -> None:
    if why.startswith(UNKNOWN_FORMAT):
        raise CheckpointError(
            "CKPT-VERSION",
            f"{path}: {why}",
            kept="it and all others, untouched",
            do="use the release of outpace that wrote it",
        )


def open_verified(path: Path) -> Checkpoint:
    """Open a checkpoint that `fault` has verified, without hashing it again."""
    manifest = read_manifest(path)
    lineage, step = written_place(manifest)
    state = json.loads((path / STATE).read_text())
    return Checkpoint(path, step, state, manifest.get("run", ""), lineage)


def latest(folder: Path, *, set_aside: bool = True) -> Checkpoint | None:
    """The newest checkpoint that verifies; None if there is none. Warns about bad newer ones, and
    with `set_aside`, which needs the run's lock, renames them out of the way. CheckpointError
    if all are bad, or another release wrote a newer one: training never restarts silently."""
    for _ in range(LISTINGS):
        listed = paths(folder)
        bad: list[tuple[Path, str]] = []
        for path in reversed(listed):
            if (why := fault(path)) is None:
                for other, reason in bad:
                    warn(f"[CKPT-BAD] {other.name}: {reason}; continuing from {path.name}")
                    if set_aside:
                        _set_aside(other)
                return open_verified(path)
            if path.is_dir():
                _refuse_other_release(path, why)
                bad.append((path, why))
        if all(path.is_dir() for path in listed):
            break  # the run deleted none meanwhile
    else:
        raise CheckpointError(
            "CKPT-GONE",
            f"the run in {folder.parent} deletes its checkpoints faster than they are read",
            kept="the run",
            do="run it again, or train with more --keep_checkpoints",
        )
    if bad:
        raise CheckpointError(
            "NO-GOOD-CKPT",
            f"none of the {len(bad)} checkpoints in {folder} is whole "
            f"({bad[0][0].name}: {bad[0][1]})",
            kept="all of them, untouched",
            do="restore one from a copy, or start again in another --run_dir",
        )
    return None


def _set_aside(path: Path) -> None:
    os.rename(path, path.with_name(f"bad-{path.name}-{uuid.uuid4().hex[:8]}"))


def paths(folder: Path) -> list[Path]:
    """Checkpoint folders by lineage and step, oldest first, whole or not; links are not
    followed."""
    try:
        names = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [
        (key, p) for p in names if (key := _parse_name(p)) and p.is_dir() and not p.is_symlink()
    ]
    return [path for _, path in sorted(found)]


def discard(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a half-deleted one is never found."""
    doomed = path.with_name(f".del-{uuid.uuid4().int % 10**6}-{uuid.uuid4().hex[:8]}")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed save, prune or replacement of a record left behind, and nothing else.
    Call with the run's lock held."""
    for path in _remains(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remains_bytes(folder: Path) -> int:
    """Bytes of what `sweep` would remove."""
    return sum(
        file.stat().st_size
        for path in _remains(folder)
        for file in (path.iterdir() if path.is_dir() else [path])
    )


def _remains(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return [p for p in found if _TEMPORARY.fullmatch(p.name) and not p.is_symlink()]


def weights_sha256(tensors: Tensors) -> str:
    """SHA-256 over names, shapes and bytes, sorted by name: equal weights have equal hashes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(_raw(tensors[name]))
    return digest.hexdigest()


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors in host memory, mapped from the file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            "CKPT-BAD", f"{path} is not a safetensors file ({error})", do="use another checkpoint"
        ) from error


def _write_tensors(path: Path, tensors: Tensors) -> dict[str, Any]:
    """Write and hash a safetensors file in one pass, without a copy of all tensors: length of the
    header (u64), header in JSON padded to 8 bytes, then the raw tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
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
