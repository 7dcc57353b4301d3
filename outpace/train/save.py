"""What a checkpoint of a run holds, and what happens when it is committed."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from outpace.checkpoint import store
from outpace.checkpoint.saver import Files
from outpace.checkpoint.state import optimizer_tensors
from outpace.core.errors import PeerLost
from outpace.core.files import fsync_folder, read_json_lines, sha256_json
from outpace.core.runfolder import RunFolder
from outpace.evals.probe import probe_loss
from outpace.train.assemble import Session
from outpace.train.progress import Progress


def save(
    s: Session,
    progress: Progress,
    guard_state: dict[str, Any],
    environment: Mapping[str, Any],
    *,
    due: bool | None = None,
) -> None:
    """Save a checkpoint by the protocol of `checkpoint.store`. Every process calls this; the first
    one writes, in the background. `due` says whether a rollback may return to it; by default, if
    the step is a multiple of --save_every_steps."""
    if s.config.safety.guard:
        _check_replicas(s)
    if not s.group.ranks.is_main:
        return
    step, folder = progress.step, s.folder
    weights = dict(s.model.named_parameters())
    files: Files = {
        store.MODEL: weights,
        store.OPTIMIZER: optimizer_tensors(s.model, s.trainable.optimizer),
    }
    state = {
        "format": store.FORMAT,
        "step": step,
        "tokens": step * s.plan.tokens_per_step,
        "elapsed_s": progress.elapsed_s,
        "progress": asdict(progress),
        "policy": guard_state,  # an older name of the guard
        "max_steps": s.plan.max_steps,
        "shape": asdict(s.plan.shape),
        "tokenizer": s.tokenizer.name,
        "scaler": s.trainable.scaler.state_dict(),
        "identity": s.identity,
        "environment": dict(environment),
        "probe_loss": probe_loss(s.model, s.plan.vocab_size, s.plan.context),
        "random_numbers": "derived from (seed, step, position); there is no generator state",
    }
    origin = store.Origin(
        run=progress.run,
        lineage=progress.lineage,
        tokens=step * s.plan.tokens_per_step,
        config_sha256=sha256_json(s.identity),
        dataset=s.mixture.fingerprint,
        environment_sha256=sha256_json(environment),
        due=step % (s.plan.save_every_steps or s.plan.max_steps) == 0 if due is None else due,
    )
    run, left_at = progress.run, list(progress.left_at)

    def write(copied: Files) -> Path:
        _sync_records(folder)
        digest = store.weights_sha256(copied[store.MODEL])
        whole = {**state, "weights_sha256": digest}
        return store.save(folder.checkpoints, step, copied, whole, origin)

    def done(path: Path, stall_s: float, write_s: float) -> None:
        folder.event(
            "checkpoint",
            step=step,
            path=path.name,
            stall_s=round(stall_s, 4),
            seconds=round(write_s, 3),
        )
        folder.write_status(
            "running", last_step=step, last_verified_checkpoint=path.name, resumable=True
        )
        losses = validation_losses(folder)
        for gone in s.retention.prune(folder.checkpoints, run=run, left_at=left_at, losses=losses):
            folder.event("deleted", path=gone.name)

    s.saver.save(files, write, done)


def _sync_records(folder: RunFolder) -> None:
    """Write the records of the steps before a checkpoint through to the disk, as it is itself."""
    for path in (folder.metrics, folder.evals, folder.samples, folder.events):
        with contextlib.suppress(OSError), open(path, "r+b") as f:
            os.fsync(f.fileno())
    with contextlib.suppress(OSError):
        fsync_folder(folder.root)


def validation_losses(folder: RunFolder) -> dict[int, float]:
    """Validation loss by step, as recorded."""
    return {
        r["step"]: r["loss"]
        for r in read_json_lines(folder.evals)
        if r.get("task") == "validation" and isinstance(r.get("loss"), float) and "step" in r
    }


def _check_replicas(s: Session) -> None:
    """PeerLost if the processes' weights are no longer bit-identical."""
    if s.group.ranks.world_size == 1:
        return
    mine = checksum(s.model)
    if not s.group.agrees(mine):
        raise PeerLost(
            "DIVERGED-REPLICAS",
            "the processes' weights differ, which they never should",
            kept="the last verified checkpoint",
            do="run the same command again; if it comes back, suspect a GPU or its memory",
        )


@torch.no_grad()
def checksum(model: torch.nn.Module) -> int:
    """A checksum of the weights, computed on the device: any single changed bit changes it."""
    total = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)
    for place, p in enumerate(model.parameters(), 1):
        total += place * p.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)
    return int(total) & (1 << 63) - 1  # positive, because `Group.agrees` also sends its negative
