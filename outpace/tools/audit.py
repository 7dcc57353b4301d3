"""Audits of checkpoints, beyond file hashes: a checkpoint loads into its model, all numbers are
finite, and the weights have the recorded hash and probe loss. Reads only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from outpace.checkpoint import store
from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import acknowledged
from outpace.evals.probe import is_as_recorded, probe_loss
from outpace.interop.declared import check_shape
from outpace.model.gpt2 import GPT2

TRIES = 5
MUON_KEYS = {"momentum_buffer"}


@dataclass(frozen=True)
class Audit:
    """The result for one checkpoint or dataset."""

    name: str
    fault: str | None = None
    """Why it is damaged; None if it is intact."""
    notes: tuple[str, ...] = ()
    """Checks that were not possible, and other remarks."""


def audit_run(run: RunFolder, *, deep: bool = False) -> list[Audit]:
    """Audit each checkpoint of a run, oldest first. If the newest one named by STATUS.json does not
    exist, that is a fault, too. A run in progress may delete a checkpoint while it is read: it is
    left out, and the folder is read again if the newest was among those."""
    for _ in range(TRIES):
        newest = acknowledged(run)
        audits = [(path, audit(path, deep=deep)) for path in store.paths(run.checkpoints)]
        found = [one for path, one in audits if not one.fault or path.is_dir()]
        if newest is None or newest in {one.name for one in found}:
            break
        if acknowledged(run) == newest:  # it is deleted only after STATUS.json names a newer one
            found.append(Audit(newest, "STATUS.json names it, but it does not exist"))
            break
    return found


def audit(path: Path, *, deep: bool = False) -> Audit:
    """Compare every file's hash; with `deep`, also load the checkpoint."""
    if why := store.fault(path):
        return Audit(path.name, why)
    try:
        return _audit_deep(store.open_verified(path)) if deep else Audit(path.name)
    except CheckpointError as error:
        return Audit(path.name, error.what)
    except (OSError, SafetensorError) as error:  # deleted meanwhile, or not a safetensors file
        return Audit(path.name, f"it cannot be read ({error})")


def _audit_deep(checkpoint: store.Checkpoint) -> Audit:
    name, state = checkpoint.path.name, checkpoint.state
    notes: list[str] = []
    weights = checkpoint.model()
    try:
        shape = check_shape(GPT2Shape(**state["shape"]))
        with torch.device("meta"):  # a bad shape must not allocate memory
            model = GPT2(shape)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        return Audit(name, f"{store.STATE} has no valid shape ({type(error).__name__}: {error})")
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        return Audit(name, f"{store.MODEL} does not fit the shape in {store.STATE}: {what}")
    if bad := _not_finite(weights):
        return Audit(name, f"{store.MODEL}: {bad} is not finite")
    if "weights_sha256" not in state:
        notes.append("no hash of its weights was recorded")
    elif store.weights_sha256(weights) != state["weights_sha256"]:
        return Audit(name, f"weights do not have the SHA-256 recorded in {store.STATE}")
    if (checkpoint.path / store.OPTIMIZER).exists():
        if bad := _optimizer_fault(checkpoint.optimizer(), dict(model.named_parameters())):
            return Audit(name, f"{store.OPTIMIZER}: {bad}")
    else:
        notes.append("weights only")
    loss = probe_loss(model, shape.vocab_size, shape.context)
    recorded = state.get("probe_loss")
    if recorded is None:
        notes.append("no probe loss was recorded")
    elif not is_as_recorded(loss, recorded):
        return Audit(name, f"its loss on the probe is {loss!r}, not {recorded!r} as recorded")
    notes.append(f"probe loss {loss:.6f}")
    return Audit(name, None, tuple(notes))


def _optimizer_fault(
    tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> str | None:
    """The fault in optimiser tensors, named `PARAMETER::KEY`; None if there is none. All parameters
    must have the same keys, except those with Muon's alone; each tensor is a scalar or has the
    parameter's shape."""
    keys: dict[str, set[str]] = {name: set() for name in parameters}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.partition("::")
        if name not in parameters:
            return f"{full_name} does not belong to a parameter"
        if tensor.dim() and tensor.shape != parameters[name].shape:
            return f"{full_name} is {tuple(tensor.shape)}, not {tuple(parameters[name].shape)}"
        keys[name].add(key)
    adamws = {name: own for name, own in keys.items() if own != MUON_KEYS}
    every = {key for own in adamws.values() for key in own} - MUON_KEYS
    for name, own in adamws.items():
        if own != every:
            return f"{name} has no {', '.join(sorted(every - own))}"
    if bad := _not_finite(tensors):
        return f"{bad} is not finite"
    return None


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    return next((n for n, t in tensors.items() if not torch.isfinite(t).all()), None)
