"""Mixed precision through torch.amp: matrix products in the compute type, weights, moments and
reductions in fp32. fp16 adds loss scaling, whose state is part of a checkpoint.
"""

import contextlib

import torch

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_name(precision: str) -> str:
    """The usual name of a precision."""
    return "fp32" if precision == "no" else precision


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Autocast to the compute type, or nothing for `no`."""
    if precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def grad_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """A loss scaler, active only for fp16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
