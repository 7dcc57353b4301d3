"""Restoring PyTorch's process-wide switches: after a run, for a notebook that trains and then does
other work, and after a probe.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def switches_put_back() -> Iterator[None]:
    """On exit, restore deterministic kernels and the precision of fp32 products."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        with products_put_back():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextlib.contextmanager
def products_put_back() -> Iterator[None]:
    """On exit, restore the precision of fp32 products alone: the switch of deterministic kernels
    imports the compiler, a second that no evaluation needs to wait."""
    matmul, tf32 = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    precision = "high" if tf32 == "tf32" else "highest"
    # The older getter raises if the precision was set through the newer API.
    with contextlib.suppress(RuntimeError):
        precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        matmul.fp32_precision = tf32
