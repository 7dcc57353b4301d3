"""Resuming from the newest good checkpoint after an interruption, and refusing to resume with
another run's settings.
"""

import contextlib
import json
import math
import socket
import tomllib
from pathlib import Path
from typing import Any

from outpace.checkpoint import store
from outpace.checkpoint.state import load_optimizer, load_weights
from outpace.config.presets import GPT2Shape
from outpace.config.schema import RunConfig
from outpace.core.errors import CheckpointError, DataError, UsageError
from outpace.core.log import note, say, warn
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import acknowledged, runs_begun
from outpace.data.mixture import Mixture
from outpace.data.shards import JOURNAL, MANIFEST
from outpace.evals.probe import changed_since
from outpace.interop.declared import check_shape
from outpace.runtime.distributed import Group
from outpace.train.assemble import Session
from outpace.train.plan import Plan, differences, identity_changes
from outpace.train.progress import Progress
from outpace.train.save import save


def check_startable(
    config: RunConfig,
    plan: Plan,
    folder: RunFolder,
    mixture: Mixture,
    run_identity: dict[str, Any],
    environment: dict[str, Any],
) -> None:
    """Before anything is written, refuse a run folder that is in use, one that holds a run if a new
    one was asked for, and continuing a run with other settings."""
    if any((folder.root / name).exists() for name in (MANIFEST, JOURNAL)):
        raise UsageError(
            "RUN-DIR-USED", f"{folder.root} holds a dataset", do="choose another --run_dir"
        )
    if others := folder.others():
        warn(f"{folder.root} holds other files than a run's ({', '.join(others[:3])}), which stay")
    if (folder.root / ".lock").exists():
        folder.lock().release()  # taken for good only after assembling, which may take long
    if config.run.resume == "never" and folder.root.is_dir() and any(folder.root.iterdir()):
        raise UsageError(
            "RUN-DIR-USED",
            f"{folder.root} holds a run already",
            do="choose another --run_dir, or leave --resume at auto to continue it",
        )
    checkpoint = _to_resume(config.run.resume, folder)
    if checkpoint is None:
        if (saved := acknowledged(folder)) is not None:
            raise CheckpointError(
                "CKPT-GONE",
                f"the run in {folder.root} has saved {saved}, and no checkpoint is left",
                kept="its records",
                do="restore one from a copy, or start again in another --run_dir, or without the "
                "folder",
            )
        return
    for name, kind in (("identity", dict), ("environment", dict), ("max_steps", int)):
        if not isinstance(checkpoint.state.get(name, kind()), kind):
            raise _no_state(checkpoint, f"{name} is not a {kind.__name__}")
    if config.run.resume != "auto":
        _check_alone(checkpoint, folder)
    _check_settings(checkpoint, config, plan, folder, mixture, run_identity, environment)


def _check_alone(checkpoint: store.Checkpoint, folder: RunFolder) -> None:
    """UsageError if the run folder has checkpoints of another run than the one that `--resume`
    names, or newer ones."""
    runs = {store.run_of(path) for path in store.paths(folder.checkpoints)}
    if runs - {checkpoint.run, "", None}:
        raise UsageError(
            "RUN-DIR-USED",
            f"{folder.root} holds a different run from that of {checkpoint.path}",
            do="choose another --run_dir",
        )
    newer = [p for p in store.paths(folder.checkpoints) if store.place_of(p) > checkpoint.place]
    if newer:
        raise UsageError(
            "RESUME-OLDER",
            f"{folder.root} has newer checkpoints than {checkpoint.path.name} ({newer[-1].name})",
            do="continue with --resume auto, or from the older one in another --run_dir",
        )


def _check_settings(
    checkpoint: store.Checkpoint,
    config: RunConfig,
    plan: Plan,
    folder: RunFolder,
    mixture: Mixture,
    run_identity: dict[str, Any],
    environment: dict[str, Any],
) -> None:
    """Refuse to continue from `checkpoint` beyond the end of the plan, without its optimiser, with
    other settings or data or, under --strict_resume, in another environment."""
    if checkpoint.step > plan.max_steps:
        raise UsageError(
            "SHORTER",
            f"the run in {folder.root} is at step {checkpoint.step:,}, beyond the "
            f"{plan.max_steps:,} steps asked for",
            kept="the run",
            do="give at least as many steps, or another --run_dir",
        )
    if "identity" not in checkpoint.state:
        raise CheckpointError(
            "WEIGHTS-ONLY", f"{checkpoint.path} holds weights only", do="use it with --init_from"
        )
    if config.run.strict_resume and (changed := environment_changes(checkpoint, environment)):
        raise CheckpointError(
            "NOT-BIT-EXACT",
            f"equal bits cannot be promised: {', '.join(changed)}",
            kept=f"the run, at step {checkpoint.step}",
            do="continue where it was trained, or without --strict_resume",
        )
    changed = identity_changes(checkpoint.state["identity"], run_identity)
    if not changed:
        return
    if any(c.startswith("dataset:") for c in changed):
        raise DataError(
            "DATA-CHANGED",
            f"the run in {folder.root} was trained on another dataset than {mixture.where}",
            kept=f"the run, at step {checkpoint.step}",
            do="give the dataset it was started with, or another --run_dir",
        )
    raise CheckpointError(
        "CONFIG-CHANGED",
        f"the run in {folder.root} has other settings: {', '.join(changed)}",
        kept=f"the run, at step {checkpoint.step}",
        do="give the settings it was started with, or another --run_dir",
    )


def check_elsewhere(group: Group, config: RunConfig, folder: RunFolder) -> None:
    """CheckpointError, in all processes, if a host has newer checkpoints of the run than the first
    process's, which alone reads and writes them."""
    newest = next(reversed(store.paths(folder.checkpoints)), None)
    told = (None, None) if newest is None else (store.run_of(newest), store.place_of(newest))
    (here, run, place, path), *others = group.all_gather((socket.gethostname(), *told, newest))
    for host, its_run, its_place, its_path in others:
        if config.run.resume == "never" or its_place is None:
            continue
        if path is None or (its_run == run and place is not None and its_place > place):
            raise CheckpointError(
                "CKPT-ELSEWHERE",
                f"{host} has {its_path}, and {here}, where process 0 is, has "
                f"{path or 'no checkpoint of the run'}",
                kept="all checkpoints",
                do=f"start process 0 on {host}, copy the run folder to {here}, or use one "
                "--run_dir that all hosts share; for a new run, another --run_dir",
            )


def will_resume(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run continues from a checkpoint, which `resume` then loads or refuses."""
    return config.run.resume not in ("auto", "never") or bool(store.paths(folder.checkpoints))


def saved_shape(config: RunConfig, argv: list[str]) -> GPT2Shape | None:
    """The shape in the checkpoints of the `--init_from` run that this command continues, or None.
    Without --run_dir that is the run that the same command began."""
    if not config.model.init_from or config.run.resume == "never":
        return None
    named = config.run.run_dir
    runs = [RunFolder(Path(named))]
    if named == "auto":
        runs = [run for run, command in runs_begun() if command == argv]
    checkpoints = [path for run in runs for path in store.paths(run.checkpoints)]
    if config.run.resume != "auto":
        checkpoints.append(Path(config.run.resume))
    for path in reversed(checkpoints):
        with contextlib.suppress(*store.UNREADABLE):
            return check_shape(GPT2Shape(**json.loads((path / store.STATE).read_bytes())["shape"]))
    return None


def resume(s: Session, environment: dict[str, Any]) -> Progress:
    """Load the newest good checkpoint into the session. Only the first process reads the run
    folder, and tells the others: their hosts may not have it. A new run with --init_from first
    saves those weights, because the source may change or go away."""
    main, is_own = s.group.ranks.is_main, True
    checkpoint = _to_resume(s.config.run.resume, s.folder, set_aside=True) if main else None
    if checkpoint is not None:
        is_own = _belongs_to(checkpoint.path, s.folder)
    checkpoint, is_own = s.group.broadcast((checkpoint, is_own))
    if checkpoint is None:
        if main:
            s.folder.forget_after(0)  # of a run that died before its first checkpoint
        progress = Progress()
        if s.plan.init_from:
            save(s, progress, s.guard.state(None), environment)
        return progress
    progress = load_checkpoint(s, checkpoint)
    other_model = changed_since(s.model, s.plan.vocab_size, s.plan.context, checkpoint.state)
    if other_model and s.config.run.strict_resume:
        raise CheckpointError(
            "NOT-BIT-EXACT",
            f"{checkpoint.path}: {other_model}",
            kept=f"the run, at step {checkpoint.step}",
            do="continue with the code it was trained with, or without --strict_resume",
        )
    then = checkpoint.state["environment"]
    progress.pieces = _pieces(s, progress.pieces, then, environment)
    if main:
        s.folder.forget_after(checkpoint.step)
        say(f"resuming from {checkpoint.path} at step {checkpoint.step:,}")
        if other_model:
            warn(f"[MODEL-CHANGED] {other_model}")
        changed = environment_changes(checkpoint, environment)
        if changed:
            warn(
                "[NOT-BIT-EXACT] same data in the same order, but not the same bits: "
                + ", ".join(changed)
            )
        if (before := checkpoint.state.get("max_steps", 0)) != s.plan.max_steps:
            warn(
                f"the run's length changes from {before:,} to {s.plan.max_steps:,} steps, and its "
                "schedule with it"
            )
        s.folder.event("resumed", step=checkpoint.step, path=checkpoint.path.name, changed=changed)
    if not is_own:
        save(s, progress, s.guard.state(s.guard.pending), environment, due=True)
    return progress


def environment_changes(checkpoint: store.Checkpoint, environment: dict[str, Any]) -> list[str]:
    """What changed in the environment that the bits depend on. If nothing did, equal bits are
    promised; otherwise only the same data in the same order."""
    return differences(checkpoint.state["environment"], environment)


def _to_resume(
    resume: str, folder: RunFolder, *, set_aside: bool = False
) -> store.Checkpoint | None:
    """The checkpoint that `--resume` means, verified; None for a new run. With `set_aside`, which
    needs the run's lock, newer bad ones are renamed. CheckpointError if it is bad or missing."""
    if resume == "never":
        return None
    if resume == "auto":
        return store.latest(folder.checkpoints, set_aside=set_aside)
    path = Path(resume)
    if (own := _continuation(path, folder, set_aside=set_aside)) is not None:
        return own
    if not path.is_dir():
        there = store.paths(folder.checkpoints)
        do = f"leave --resume out to continue from {there[-1]}" if there else "check --resume"
        raise CheckpointError("NO-CKPT", f"there is no checkpoint {resume}", do=do)
    if RunFolder(path).plan.is_file():
        raise UsageError(
            "NOT-A-CHECKPOINT", f"{path} is a run", do=f"--run_dir {path}, and --resume left out"
        )
    return store.load(path)


def _continuation(path: Path, folder: RunFolder, *, set_aside: bool) -> store.Checkpoint | None:
    """The newest checkpoint of `folder`, if a run resumed from `path` has already continued there.
    The same command then continues from it, even if `path` is gone."""
    if _belongs_to(path, folder):
        return None
    own = store.latest(folder.checkpoints, set_aside=set_aside)
    if own is None or not own.run:
        return None
    with contextlib.suppress(*store.UNREADABLE):
        if path.exists():
            there = store.read_manifest(path)
            began = own.run == there.get("run") and own.place >= store.written_place(there)
        else:
            config = tomllib.loads(folder.config.read_text(encoding="utf-8"))
            began = Path(config["run"]["resume"]) == path
        return own if began else None
    return None


def _belongs_to(path: Path, folder: RunFolder) -> bool:
    return path.resolve().parent == folder.checkpoints.resolve()


def load_checkpoint(s: Session, checkpoint: store.Checkpoint) -> Progress:
    """Load a checkpoint's weights, moments, loss scale and guard into the session; its files are
    read by the first process, and sent to the others. CheckpointError if its hashes are right but
    its state is not one that a run has written."""
    state, main = checkpoint.state, s.group.ranks.is_main
    load_weights(s.model, s.group.broadcast_tensors(checkpoint.model() if main else {}))
    moments = s.group.broadcast_tensors(checkpoint.optimizer() if main else {})
    load_optimizer(s.model, s.trainable.optimizer, moments)
    try:
        s.trainable.scaler.load_state_dict(state["scaler"])
        s.guard.load(state["policy"])
        return Progress.of(state, checkpoint.step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_state(checkpoint, f"{type(error).__name__}: {error}") from error


def _pieces(s: Session, pieces: int, then: dict[str, Any], now: dict[str, Any]) -> int:
    """Into how many parts to cut each micro-batch: if memory was short on this device before, so
    many that a part has no more sequences than fitted then."""
    if pieces == 1 or then.get("device") != now["device"]:
        return 1
    before, rows_now = int(then["micro_batch_size"]), s.plan.micro_batch_size
    rows = math.ceil(before / pieces)
    if s.group.ranks.is_main and rows < rows_now:
        note(f"memory was short before: continuing with {rows} sequences per micro-step")
    return pieces if before == rows_now else math.ceil(rows_now / rows)


def _no_state(checkpoint: store.Checkpoint, why: str) -> CheckpointError:
    return CheckpointError(
        "CKPT-BAD",
        f"{checkpoint.path}: its state was not written by a run ({why})",
        kept="all checkpoints, untouched",
        do="move it away to continue from the one before",
    )
