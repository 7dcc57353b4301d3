"""Preparation by several processes that know only their rank: started by `torchrun`, a SLURM array
or a shell loop, on a shared file system.

Rank r of W turns the chunks n with n mod W = r into pieces, one file per chunk in OUTPUT/.parts/;
chunks with a file are not done again. The process that finds all files merges them: it prepares as
usual, with an engine that takes the pieces from the files. The result has the same bytes as with
one process.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core.errors import DataError, RunInUse, UsageError
from outpace.core.files import sha256_json, storage_error
from outpace.core.limits import usable_cores
from outpace.core.log import note, warn
from outpace.data.encode import Piece, Work
from outpace.data.folder import stop_on_signals
from outpace.data.prepare import PrepareOptions, prepare, work_of
from outpace.data.shards import MANIFEST, Dataset
from outpace.data.sources import Chunk, Source
from outpace.data.sources.remote import of_one_rank
from outpace.data.threads import Task, ThreadEngine

PARTS = ".parts"
NUMBERS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)
"""Environment variables of torchrun, a SLURM array and srun."""


def ranks_from(
    rank: int | None, world_size: int | None, environment: Mapping[str, str]
) -> tuple[int, int]:
    """(rank, world size) as given, else from the environment. UsageError if there are none, or if
    the rank is not below the size."""
    if (rank is None) != (world_size is None):
        raise UsageError("RANKS", "--rank and --world_size go together", do="give both, or none")
    if rank is None or world_size is None:
        for names in NUMBERS:
            if all(environment.get(name, "").isdecimal() for name in names):
                rank, world_size = (int(environment[name]) for name in names)
                if names[0] == "SLURM_ARRAY_TASK_ID":  # an array may begin at 1, in steps of 2
                    rank -= int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
                    rank //= int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
                break
        else:
            raise UsageError(
                "RANKS",
                "--engine ranks needs a rank, from flags or the environment",
                do="give --rank R --world_size W, or start it with torchrun or in a SLURM array",
            )
    if not 0 <= rank < world_size:
        raise UsageError(
            "RANKS", f"rank {rank} of {world_size}", do=f"choose --rank 0 to {world_size - 1}"
        )
    return rank, world_size


def prepare_share(
    source: Source,
    output: Path,
    options: PrepareOptions,
    *,
    rank: int,
    world_size: int,
    workers: int | None = None,
    tokenizer_engine: str = "auto",
) -> Dataset | None:
    """Do this rank's chunks, and merge if no others are missing. None if other ranks are still
    working, or another rank merges."""
    work = work_of(options, tokenizer_engine)
    make = partial(
        prepare, source, output, options, workers=workers, tokenizer_engine=tokenizer_engine
    )
    if (output / MANIFEST).exists():
        dataset = make()
        shutil.rmtree(output / PARTS, ignore_errors=True)
        return dataset
    chunks = source.chunks()
    folder = output / PARTS / _key(source, chunks, work, options)
    with stop_on_signals(output):
        _write_parts(folder, chunks, range(rank, len(chunks), world_size), work, workers)
    missing = sum(not part_of(folder, number).exists() for number in range(len(chunks)))
    if missing and not (output / MANIFEST).exists():  # else another rank has merged just now
        note(
            f"rank {rank} of {world_size} is done; {missing:,} parts of other ranks are missing: "
            f"the last to finish merges all in {folder.parent}, which they must share, "
            "or be given by copies before one is run again"
        )
        if others := sorted(path.name for path in folder.parent.glob("*") if path != folder):
            warn(
                f"{folder.parent} has parts of other text or other options ({', '.join(others)}): "
                "all ranks must be given the same; delete the rest of an earlier preparation"
            )
        return None
    try:
        dataset = make(engine=PartsEngine(folder, work, workers or usable_cores()))
    except RunInUse:
        note(f"rank {rank} of {world_size} is done; another rank merges")
        return None
    shutil.rmtree(output / PARTS, ignore_errors=True)
    return dataset


def part_of(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.zip"


def _key(source: Source, chunks: Sequence[Chunk], work: Work, options: PrepareOptions) -> str:
    """Key of the folder of parts, so that parts of other text, work or options do not mix."""
    stamps = [[chunk.name, chunk.size_bytes, chunk.stamp] for chunk in chunks]
    return sha256_json([source.name, source.describe(), stamps, repr(work), repr(options)])[:16]


def _write_parts(
    folder: Path, chunks: Sequence[Chunk], mine: Iterable[int], work: Work, workers: int | None
) -> None:
    wanted = [number for number in mine if not part_of(folder, number).exists()]
    tasks = [
        (number, chunk, 0)
        for number, chunk in zip(wanted, of_one_rank([chunks[n] for n in wanted]), strict=True)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left = iter(wanted)
        with contextlib.closing(ThreadEngine(workers or usable_cores())(tasks, work)) as pieces:
            for number, group in itertools.groupby(pieces, lambda found: found[0]):
                for empty in itertools.takewhile(lambda n, at=number: n != at, left):  # type: ignore[misc]
                    write_part(part_of(folder, empty), [])
                write_part(part_of(folder, number), (piece for _, piece in group))
        for empty in left:
            write_part(part_of(folder, empty), [])
    except OSError as error:
        raise storage_error(folder, error) from error


def write_part(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a zip file, which gets its name once whole: for each piece one .npy per array, then the
    rest as JSON."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as file:
            for number, piece in enumerate(pieces):
                plain: dict[str, Any] = {}
                for field in dataclasses.fields(Piece):
                    value = getattr(piece, field.name)
                    if isinstance(value, np.ndarray):
                        content = io.BytesIO()
                        np.save(content, value, allow_pickle=False)
                        file.writestr(f"{number:06d}/{field.name}.npy", content.getvalue())
                    else:
                        plain[field.name] = value
                file.writestr(f"{number:06d}.json", json.dumps(plain))
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_part(path: Path) -> Iterator[Piece]:
    """The pieces of a chunk; DataError if the file is damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            arrays: dict[str, Any] = {}
            for name in file.namelist():
                content = file.read(name)
                if name.endswith(".npy"):
                    field = name.rpartition("/")[2].removesuffix(".npy")
                    arrays[field] = np.load(io.BytesIO(content), allow_pickle=False)
                    continue
                plain = json.loads(content)
                plain["details"] = {int(n): text for n, text in plain["details"].items()}
                yield Piece(**arrays, **plain)
                arrays = {}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            "PART-DAMAGED",
            f"{path} cannot be read ({type(error).__name__}: {error})",
            kept="all other parts",
            do="delete that file, and run the same commands again",
        ) from error


class PartsEngine:
    """The pieces that all ranks have written. Any other work (the second pass over a very small
    source) is done here."""

    def __init__(self, folder: Path, work: Work, workers: int) -> None:
        self.folder, self.work, self.workers = folder, work, workers

    def __call__(
        self, tasks: Sequence[Task], work: Work
    ) -> Generator[tuple[int, Piece], None, None]:
        if work != self.work:
            yield from ThreadEngine(self.workers)(tasks, work)
            return
        for number, _, skip in tasks:
            for piece in read_part(part_of(self.folder, number)):
                if piece.first + len(piece) > skip or not skip:
                    yield number, piece
