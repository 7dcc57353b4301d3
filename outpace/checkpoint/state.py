"""Training state to tensors by name, and back: weights and the optimiser's moments."""

import torch
from torch import nn

from outpace.core.errors import CheckpointError
from outpace.core.shapes import mismatch


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimiser's state as `PARAMETER::KEY` -> tensor, independent of parameter order."""
    return {
        f"{name}::{key}": value
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Restore `optimizer_tensors`, dropping any other state. CheckpointError if they belong to
    another model."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.partition("::")
        if name not in parameters:
            raise CheckpointError(
                "CKPT-MODEL",
                f"the checkpoint has moments of {name!r}, the model has no such parameter",
                do="use the model it was made with",
            )
        p = parameters[name]
        # A copy: safetensors maps the file.
        optimizer.state[p][key] = tensor.to(p.device, copy=True)


def load_weights(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy weights in by name; CheckpointError lists what is missing, unexpected or misshapen."""
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if faults := mismatch(own, {name: tuple(t.shape) for name, t in tensors.items()}):
        raise CheckpointError("CKPT-MODEL", faults, do="use the model it was made with")
    model.load_state_dict(tensors, strict=True)
