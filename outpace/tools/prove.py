"""Proof of an exact resume for any run: train again from one of its checkpoints to the next, in a
separate folder, and compare the bits of weights and moments.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.checkpoint import store
from outpace.checkpoint.retention import is_ancestor
from outpace.config.load import load as load_config
from outpace.core.errors import CheckpointError, DataError, UsageError
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import no_run
from outpace.runtime import distributed
from outpace.train.assemble import assemble
from outpace.train.corpus import trained_on
from outpace.train.environment import describe_environment
from outpace.train.loop import train
from outpace.train.plan import identity, identity_changes
from outpace.train.progress import Progress
from outpace.train.resume import environment_changes, load_checkpoint
from outpace.train.run import plan_run
from outpace.train.stop import StopRequest
from outpace.train.watchdog import Watchdog

FILES = (store.MODEL, store.OPTIMIZER)
NO_EVALUATION = ("eval_every_steps", "hellaswag_every_steps", "sample_every_steps")


@dataclass(frozen=True)
class Proof:
    """The files of one step, from the run itself and from its resume."""

    begin: int
    end: int
    recorded: dict[str, str]
    """SHA-256 of each file as written by the run."""
    again: dict[str, str]
    """SHA-256 of each file as written by the resume."""
    environment_changes: list[str]
    """Differences from the run's environment, with which equal bits are not promised."""

    @property
    def equal(self) -> bool:
        return self.recorded == self.again


def prove_resume(folder: RunFolder, scratch: Path, at: int | None = None) -> Proof | None:
    """Train from the checkpoint of step `at` (0: the beginning of the run; None: the last but one)
    to the run's next one. The run is only read. Of several processes, only the first returns the
    proof. CheckpointError if the run has no checkpoint, DataError if its dataset has changed,
    UsageError if this number of processes would train with other settings."""
    if not folder.config.is_file():
        raise no_run(folder, folder.config)
    try:
        return _prove(folder, scratch, at)
    except FileNotFoundError as error:
        if not Path(str(error.filename)).is_relative_to(folder.checkpoints):
            raise
        raise CheckpointError(
            "CKPT-GONE",
            f"{folder.root} is training, and deleted a checkpoint while it was read",
            do="run it again, or train with more --keep_checkpoints",
        ) from error


def _prove(folder: RunFolder, scratch: Path, at: int | None) -> Proof | None:
    begin, target = _pair(folder, at)
    dataset, fingerprint = trained_on(folder)
    flags = _flags(folder, scratch, dataset, target.state["max_steps"])
    config, set_by = load_config(flags, "outpace prove-resume")
    ranks = distributed.ranks_from_environment()
    plan, machine, mixture, device = plan_run(config, set_by, ranks)
    if mixture.fingerprint != fingerprint:
        raise DataError(
            "DATA-CHANGED",
            f"{dataset} has other tokens than {folder.root} was trained on",
            do="restore the dataset on which it was trained",
        )
    run_identity = identity(config, plan, mixture.fingerprint)
    if changed := identity_changes(target.state["identity"], run_identity):
        processes = target.state["environment"]["world_size"]
        raise UsageError(
            "OTHER-RUN",
            f"here {folder.root} would be trained with other settings: {', '.join(changed)}",
            do=f"start it like the run, with {processes:,} processes (torchrun --nproc_per_node)"
            if processes != ranks.world_size
            else "use the release of outpace that trained it",
        )
    environment = describe_environment(plan, machine)
    with distributed.Group(ranks, device) as group:
        session = assemble(
            config,
            plan,
            folder=RunFolder(scratch),
            group=group,
            mixture=mixture,
            stop=StopRequest(),
            identity=run_identity,
            watchdog=Watchdog(0.0, scratch, ranks.rank, lambda error: None),
            fresh=begin is None,
        )
        progress = Progress(run=target.run)
        if begin is not None:
            progress = load_checkpoint(session, begin)
        session.folder.create()
        start = progress.step
        train(session, progress, machine, environment, until=target.step)
        session.loader.close()
    if not ranks.is_main:
        return None
    made = session.folder.checkpoints / target.path.name
    proof = Proof(
        start, target.step, _hashes(target.path), _hashes(made),
        environment_changes(target, environment),
    )  # fmt: skip
    if begin and not proof.equal and begin.state["max_steps"] != target.state["max_steps"]:
        raise UsageError(
            "LENGTH",
            f"the run's length changed between step {start} and {target.step}, and its schedule "
            "with it",
            do="choose another --at",
        )
    return proof


def _flags(folder: RunFolder, scratch: Path, dataset: str, max_steps: int) -> list[str]:
    """The run's own settings, data, and length at that time."""
    flags = ["--recipe", str(folder.config), "--run_dir", str(scratch), "--resume", "auto"]
    flags += ["--dataset", dataset, "--max_tokens", "auto", "--max_steps", str(max_steps)]
    for name in (*NO_EVALUATION, "save_every_steps"):
        flags += [f"--{name}", "0"]
    return flags


def _pair(folder: RunFolder, at: int | None) -> tuple[store.Checkpoint | None, store.Checkpoint]:
    """Two successive checkpoints of one lineage; the first is None for the beginning of the run."""
    newest = store.latest(folder.checkpoints, set_aside=False)
    if newest is None or newest.step == 0:
        raise CheckpointError(
            "NO-CKPT", f"{folder.root} has no checkpoint yet", do="let it reach its first one"
        )
    left_at = newest.state.get("progress", {}).get("left_at", [])
    found = [p for p in store.paths(folder.checkpoints) if store.place_of(p) < newest.place]
    way = [p for p in (*found, newest.path) if is_ancestor(p, left_at)]
    here = way[-2] if len(way) > 1 else None
    if at is not None:
        here = next((p for p in way if store.step_of(p) == at), None)
        if here is None and at:
            raise UsageError(
                "NO-CKPT",
                f"{folder.root} has no checkpoint of step {at}",
                do=f"choose --at 0 or one of {', '.join(str(store.step_of(p)) for p in way[:-1])}",
            )
    after = way if here is None else way[way.index(here) + 1 :]
    if not after:
        raise UsageError(
            "NO-CKPT",
            f"step {at} is the newest checkpoint of {folder.root}",
            do="choose an older one",
        )
    begin = None if here is None else store.load(here)
    target = store.load(after[0])
    if begin and _pieces(begin) != _pieces(target):
        raise UsageError(
            "MEMORY",
            f"memory ran short between step {begin.step} and {target.step}, and micro-batches "
            "were halved",
            do="choose another --at",
        )
    if begin is None and target.state["identity"]["init_from"]:
        raise UsageError(
            "NO-CKPT",
            f"{folder.root} no longer has its initial weights",
            do="choose --at one of its checkpoints" if way[:-1] else "wait for its next checkpoint",
        )
    if target.lineage != (begin.lineage if begin else 0):
        raise UsageError(
            "ROLLBACK",
            f"the run rolled back between step {begin.step if begin else 0} and {target.step}",
            do="choose another --at",
        )
    return begin, target


def _pieces(checkpoint: store.Checkpoint) -> int:
    pieces: int = checkpoint.state.get("progress", {}).get("pieces", 1)
    return pieces


def _hashes(path: Path) -> dict[str, str]:
    files: dict[str, Any] = store.read_manifest(path)["files"]
    return {name: files[name]["sha256"] for name in FILES}
