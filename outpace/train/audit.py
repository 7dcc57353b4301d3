"""Is this checkpoint what it says? Beyond its hashes: it loads into its model, all is finite, and
the weights have the hash and the loss they were saved with. Reads only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from outpace.checkpoint import store
from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError, UsageError
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import read_state
from outpace.evals.probe import is_as_recorded, probe_loss
from outpace.interop.declared import check_shape
from outpace.model.gpt2 import GPT2

TRIES = 5
MUON_KEYS = {"momentum_buffer"}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Audit:
    """What was found of one checkpoint or dataset."""

    name: str
    fault: str | None = None
    """Why it is damaged; None when it is whole."""
    notes: tuple[str, ...] = ()
    """What could not be compared, or is worth knowing."""


def audit_run(run: RunFolder, *, deep: bool = False) -> list[Audit]:
    """`audit` of each checkpoint of a run, oldest first, and of the newest that STATUS.json names
    but that is not there. A run that is training may delete one while it is read: that one is
    left out, and the folder read again when the newest was among them."""
    for _ in range(TRIES):
        newest = acknowledged(run)
        audits = [(path, audit(path, deep=deep)) for path in store.paths(run.checkpoints)]
        found = [one for path, one in audits if not one.fault or path.is_dir()]
        if newest is None or newest in {one.name for one in found}:
            break
        if acknowledged(run) == newest:  # what it names is deleted only once it names a newer one
            found.append(Audit(newest, "STATUS.json names it, but it is not there"))
            break
    return found


def acknowledged(run: RunFolder) -> str | None:
    """The checkpoint that the run last said to be committed."""
    try:
        name = read_state(run).get("last_verified_checkpoint")
    except UsageError:
        return None
    return name if isinstance(name, str) else None


def audit(path: Path, *, deep: bool = False) -> Audit:
    """Compare every hash; with `deep`, load it, too."""
    if why := store.fault(path):
        return Audit(path.name, why)
    try:
        return _audit_deep(store.open_verified(path)) if deep else Audit(path.name)
    except CheckpointError as error:
        return Audit(path.name, error.what)
    except (OSError, SafetensorError) as error:  # deleted meanwhile; well hashed, but no tensors
        return Audit(path.name, f"it cannot be read ({error})")


def _audit_deep(checkpoint: store.Checkpoint) -> Audit:
    name, state = checkpoint.path.name, checkpoint.state
    notes: list[str] = []
    weights = checkpoint.model(CPU)
    try:
        shape = check_shape(GPT2Shape(**state["shape"]))
        with torch.device("meta"):  # nothing is allocated for what a file says
            model = GPT2(shape)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        return Audit(name, f"{store.STATE} names no model ({type(error).__name__}: {error})")
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        return Audit(name, f"{store.MODEL} does not fit the model of {store.STATE}: {what}")
    if bad := _not_finite(weights):
        return Audit(name, f"{store.MODEL}: {bad} is not finite")
    if "weights_sha256" not in state:
        notes.append("no hash of its weights was recorded")
    elif store.weights_sha256(weights) != state["weights_sha256"]:
        return Audit(name, f"{store.MODEL} does not have the weights' SHA-256 of {store.STATE}")
    if (checkpoint.path / store.OPTIMIZER).exists():
        if bad := _optimizer_fault(checkpoint.optimizer(CPU), dict(model.named_parameters())):
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
    """`PARAMETER::KEY` -> tensor: every parameter has the same keys, but for those that only have
    Muon's, each a number or a tensor of the parameter's own shape."""
    keys: dict[str, set[str]] = {name: set() for name in parameters}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.partition("::")
        if name not in parameters:
            return f"{full_name} belongs to no parameter"
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
