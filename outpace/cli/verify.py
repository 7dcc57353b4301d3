"""`outpace verify FOLDER`: check every hash of a run's checkpoints, or of a dataset."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from outpace.config.load import parse_flags
from outpace.core.errors import CheckpointError, DataError, UsageError
from outpace.core.log import show, show_json
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import read_state

if TYPE_CHECKING:
    from outpace.tools.audit import Audit


@dataclass
class Options:
    """Read everything and compare it with the recorded hashes. Changes nothing."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A run, a checkpoint, or a prepared dataset."""
    deep: bool = False
    """Also load each checkpoint: check shapes, finite numbers, the weights' hash, and the loss on
    fixed tokens."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace verify")

    from outpace.checkpoint import store
    from outpace.data.shards import JOURNAL, MANIFEST
    from outpace.tools.audit import audit, audit_run

    folder, error = options.folder, None
    if (folder / store.STATE).is_file() or (folder.name.startswith("step-") and folder.is_dir()):
        kind, found = "checkpoint", [audit(folder, deep=options.deep)]
    elif (folder / MANIFEST).is_file() or (folder / JOURNAL).is_file():
        kind, (one, error) = "dataset", _dataset(folder)
        found = [one]
    elif (folder / store.MANIFEST).is_file():
        kind, found = "checkpoint", [audit(folder, deep=options.deep)]
    else:
        kind, found = "run", audit_run(RunFolder(folder), deep=options.deep)
    if not found:
        raise _nothing(RunFolder(folder))
    if options.json:
        checked = [asdict(one) for one in found]
        show_json({"kind": kind, "folder": str(folder), "checked": checked})
    else:
        for one in found:
            state = one.fault or "whole, every hash is right"
            show("; ".join([f"{one.name}: {state}", *one.notes]))
    if bad := [one for one in found if one.fault]:
        raise error or CheckpointError(
            "CKPT-BAD",
            f"{len(bad)} of {len(found)} checkpoints are damaged ({bad[0].name}: {bad[0].fault})",
            kept="all of them, untouched",
            do="restore it from a copy; training continues from the newest undamaged one",
        )
    return 0


def _dataset(folder: Path) -> tuple["Audit", DataError | None]:
    """Check every hash of a dataset; the result, and the error that names the difference."""
    from outpace.data.shards import open_dataset, verify_dataset
    from outpace.tools.audit import Audit

    try:
        verify_dataset(open_dataset(folder))
    except DataError as error:
        return Audit(folder.name, error.what), error
    return Audit(folder.name), None


def _nothing(run: RunFolder) -> UsageError:
    """The error for a folder without a checkpoint: not a run, or one that has not saved yet."""
    try:
        state = read_state(run)["state"]
    except UsageError:
        what, do = "has no checkpoint and no dataset", "check the path"
    else:
        what = f"has no checkpoint yet; the run is {state}"
        do = "wait for its first checkpoint" if state == "running" else "run its command again"
    return UsageError("NOTHING-TO-VERIFY", f"{run.root} {what}", do=do)
