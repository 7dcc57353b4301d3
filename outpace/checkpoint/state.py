"""The state of training, to tensors by name and back: weights, moments, loss scaler."""

from typing import Any

import torch
from torch import nn

from outpace.core.errors import CheckpointError


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
    """Put `optimizer_tensors` back. CheckpointError when they belong to another model."""
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.partition("::")
        if name not in parameters:
            raise CheckpointError(
                "CKPT-MODEL",
                f"the checkpoint has moments of {name!r}, the model has no such parameter",
            )
        p = parameters[name]
        optimizer.state[p][key] = tensor.to(
            p.device, copy=True
        )  # off the file that safetensors maps


def load_weights(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy weights in by name; CheckpointError lists what is missing, unexpected or misshapen."""
    own = model.state_dict()
    faults = [f"no {n}" for n in own if n not in tensors]
    faults += [f"unexpected {n}" for n in tensors if n not in own]
    faults += [
        f"{n} is {tuple(tensors[n].shape)}, not {tuple(own[n].shape)}"
        for n in own
        if n in tensors and tensors[n].shape != own[n].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            "CKPT-MODEL", "; ".join(faults[:3]) + more, do="use the model it was made with"
        )
    model.load_state_dict(tensors, strict=True)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`name: then -> now` for every setting that changed."""
    return [
        f"{key}: {then.get(key)} -> {now.get(key)}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
