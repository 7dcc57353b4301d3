"""`outpace verify FOLDER`: check every hash of a run's checkpoints, or of a dataset."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from outpace.config.load import parse_flags
from outpace.core.errors import CheckpointError, UsageError
from outpace.core.log import show
from outpace.core.runfolder import RunFolder


@dataclass
class Options:
    """Read everything and compare it with the hashes it was written with. Changes nothing."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A run, a checkpoint, or a prepared dataset."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace verify")

    from outpace.checkpoint import store
    from outpace.data.shards import MANIFEST, open_dataset, verify_dataset

    folder = options.folder
    if (folder / store.STATE).exists():
        found: list[dict[str, Any]] = [{"name": folder.name, "fault": store.fault(folder)}]
        kind = "checkpoint"
    elif (folder / MANIFEST).exists():
        dataset = open_dataset(folder)
        verify_dataset(dataset)
        found = [{"name": folder.name, "fault": None}]
        kind = "dataset"
    elif paths := store.paths(RunFolder(folder).checkpoints):
        found = [{"name": p.name, "fault": store.fault(p)} for p in paths]
        kind = "run"
    else:
        raise UsageError(
            "NOTHING-TO-VERIFY", f"{folder} holds no checkpoint and no dataset", do="check the path"
        )
    if options.json:
        show(json.dumps({"kind": kind, "folder": str(folder), "checked": found}, indent=2))
    else:
        for entry in found:
            show(f"{entry['name']}: {entry['fault'] or 'whole, every hash is right'}")
    if bad := [e for e in found if e["fault"]]:
        raise CheckpointError("CKPT-BAD", f"{len(bad)} of {len(found)} checkpoints are damaged")
    return 0
