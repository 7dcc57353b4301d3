"""Flags of `outpace prepare` about where the work is done."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from outpace.config.ranges import Range
from outpace.core.errors import UsageError

if TYPE_CHECKING:
    from outpace.data.prepare import PrepareOptions
    from outpace.data.shards import Dataset
    from outpace.data.sources import Source


@dataclass
class EngineOptions:
    """Where the work is done. No choice changes a byte of the result."""

    engine: Literal["threads", "ray", "ranks"] = "threads"
    """threads: in this process. ray: workers of a Ray cluster. ranks: processes that share only the
    output folder, started by torchrun, a SLURM array or by hand; the last to finish merges."""
    address: str = "auto"
    """Ray cluster: HOST:PORT, auto (the one this machine is in) or local (started here)."""
    rank: Annotated[int | None, Range(0, 1_000_000)] = None
    """This process's rank, from 0. Default: as torchrun or SLURM says."""
    world_size: Annotated[int | None, Range(1, 1_000_000)] = None
    """Number of ranks. Default: as torchrun or SLURM says."""


def prepare_with(
    options: EngineOptions,
    source: "Source",
    output: Path,
    what: "PrepareOptions",
    *,
    workers: int | None,
    tokenizer_engine: str,
) -> "Dataset | None":
    """Prepare on the engine asked for. None while other ranks are not finished."""
    from outpace.data.prepare import prepare
    from outpace.data.rank_parts import prepare_share, ranks_from
    from outpace.data.ray_engine import RayEngine

    numbered = options.rank is not None or options.world_size is not None
    if options.engine == "ray" and numbered:
        raise UsageError("BAD-VALUE", "Ray takes no --rank and --world_size", do="leave them out")
    if options.address != "auto" and options.engine != "ray":
        raise UsageError("BAD-VALUE", "--address is for --engine ray", do="leave it out")
    if numbered or options.engine == "ranks":
        rank, world_size = ranks_from(options.rank, options.world_size, os.environ)
        return prepare_share(
            source,
            output,
            what,
            rank=rank,
            world_size=world_size,
            workers=workers,
            tokenizer_engine=tokenizer_engine,
        )
    engine = RayEngine(options.address, workers) if options.engine == "ray" else None
    return prepare(
        source, output, what, workers=workers, engine=engine, tokenizer_engine=tokenizer_engine
    )
