"""torch.compile, when it works here. A probe compiles something tiny first, so that a missing
compiler or Triton costs a line, not a run.
"""

import platform
import shutil

import torch


def why_not(device: torch.device) -> str | None:
    """A reason why torch.compile cannot serve on this device, or None after a probe that ran."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        return "no C++ compiler was found (g++ or clang++)"
    if device.type == "cuda" and platform.system() == "Windows":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "Triton is not installed"

    def probe(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ x).sum()

    x = torch.ones(8, 8, device=device, requires_grad=True)
    try:
        torch.compile(probe)(x).backward()
    except Exception as error:  # the compiler's failures have no common type
        return f"a probe failed with {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return None
