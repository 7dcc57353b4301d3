"""PyTorch's process-wide switches: deterministic kernels, and the precision of fp32 products. They
are set for a run or a probe, and restored after it, for a notebook that then does other work.
"""

import contextlib
import os
from collections.abc import Iterator

import torch


def use_deterministic_kernels(on: bool) -> None:
    """Let torch use only kernels whose result does not depend on thread timing, or raise. (If it
    may only warn, attention's backward on a GPU does not change.) Affects compiled code, too:
    Inductor's own backward of an embedding uses atomic adds, in any order."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(on)
    # A debugging aid, and slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def use_tf32(on: bool) -> None:
    """Use TF32 or full fp32 for fp32 products on CUDA; a CPU has no TF32. Uses the one function
    that sets all of PyTorch's related flags: the compiler refuses to run if only some of them are
    set."""
    torch.set_float32_matmul_precision("high" if on else "highest")


@contextlib.contextmanager
def restored_switches() -> Iterator[None]:
    """On exit, restore deterministic kernels and the precision of fp32 products."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        with restored_fp32_precision():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextlib.contextmanager
def restored_fp32_precision() -> Iterator[None]:
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
