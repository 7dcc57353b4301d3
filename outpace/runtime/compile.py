"""torch.compile, where it works. A probe first compiles something tiny, so that a missing compiler
or Triton costs one line, not the run.
"""

import contextlib
import functools
import logging
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from outpace.core.cache import cache_folder
from outpace.core.crash import first_line
from outpace.core.secrets import redact

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
CACHE_LOGGERS = ("torch._inductor.codecache", "torch._functorch._aot_autograd.autograd_cache")
LINKED_S = 5.0
"""Seconds without a write after which a library is no longer being written."""
TUNED: dict[str, str | int | bool | Callable[..., Any]] = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "epilogue_fusion": True,
    "triton.cudagraphs": False,
}
"""Inductor's `max-autotune-no-cudagraphs` plus a search over each kernel's launch parameters."""


def compile_module(module: torch.nn.Module, mode: str) -> torch.nn.Module:
    """torch.compile for constant shapes, in the mode `default` or `tuned`. With deterministic
    algorithms on, no kernel that affects the result is chosen by timing."""
    keep_compiled_code()
    equal = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
    options = TUNED | equal if mode == "tuned" else None
    return torch.compile(module, dynamic=False, options=options)  # type: ignore[return-value]


class _OneLine(logging.Filter):
    """Shortens the log record for a cache that cannot be read or written to one line: compilation
    continues without it, and the traceback does not help."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            record.msg = f"{record.getMessage()}, continuing without: {record.exc_info[1]!r}"[:200]
            record.args, record.exc_info = (), None
        return True


_one_line = _OneLine()


def keep_compiled_code() -> None:
    """Keep compiled code and graphs in our cache folder, where the next run finds them, not in the
    temporary folder, which a reboot empties. A folder named by the user stays. PyTorch's default is
    used if our folder cannot be written, or if its path contains a space or a quote, which PyTorch
    does not quote for the C++ compiler. Problems with the cache are logged in one line each."""
    for name in CACHE_LOGGERS:
        logging.getLogger(name).addFilter(_one_line)  # the same filter is added once
    # It warns that a small GPU cannot autotune, which nobody asked for.
    logging.getLogger("torch._inductor.utils").setLevel(logging.ERROR)
    # Importing the compiler sets the variable, if nobody has, to a temporary folder.
    import torch._functorch.config as functorch
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # The losses are autograd.Functions. Unless these may be cached, the losses, and the model with
    # them, would be compiled again at every start.
    functorch.autograd_cache_allow_custom_autograd_functions = True
    if os.environ.get(CACHE_VARIABLE, default_cache_dir()) == default_cache_dir():
        folder = cache_folder() / "inductor"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # os.access is no answer on a read-only mount
                if not _needs_quotes(folder):
                    os.environ[CACHE_VARIABLE] = str(folder)
    _delete_cut(Path(os.environ.get(CACHE_VARIABLE, default_cache_dir())))


def _needs_quotes(path: Path) -> bool:
    return shlex.quote(str(path)) != str(path)


@functools.cache
def _delete_cut(folder: Path) -> None:
    """Delete libraries that a kill cut short: PyTorch takes every existing file for whole, and a
    process that loads a truncated one dies of SIGBUS."""
    for place, _, names in os.walk(folder):  # skips what vanishes meanwhile
        for library in (Path(place, name) for name in names if name.endswith(".so")):
            with contextlib.suppress(OSError):
                while _is_cut(library):
                    if abs(time.time() - library.stat().st_mtime) > LINKED_S:
                        library.unlink()
                    time.sleep(0.05)


def _is_cut(library: Path) -> bool:
    """Whether the file ends before its section header table, which comes last in a library. Only
    for 64-bit little-endian ELF; False for other formats."""
    with open(library, "rb") as f:
        head, size = f.read(64), os.fstat(f.fileno()).st_size
    if len(head) < 64 or not any(head):
        return True
    if not head.startswith(b"\x7fELF\x02\x01"):
        return False
    offset, entry, entries = struct.unpack("<40xQ10xHH2x", head)
    return bool(size < offset + entry * entries)


def why_not(device: torch.device) -> str | None:
    """Why torch.compile does not work on this device, or None after a successful probe."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        return "no C++ compiler was found (g++ or clang++)"

    def probe(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ x).sum()

    keep_compiled_code()
    x = torch.ones(8, 8, device=device, requires_grad=True)
    try:
        with warnings.catch_warnings():  # that fp32 products could be faster
            warnings.simplefilter("ignore")
            torch.compile(probe)(x).backward()
    except Exception as error:  # the compiler's failures have no common type
        cause = getattr(error, "inner_exception", error)
        why = f"a probe failed with {type(cause).__name__}: {_telling_line(cause)[:120]}"
        if isinstance(cause, subprocess.CalledProcessError):  # Triton's; its text is a command line
            why = "the C compiler failed: Triton needs gcc and Python's headers (python3-dev)"
        places = Path(torch.__file__).parent, Path(os.environ.get(CACHE_VARIABLE, ""))
        if quoted := [str(path) for path in places if _needs_quotes(path)]:
            why += f" (PyTorch needs a path without spaces or quotes, unlike {quoted[0]})"
        return why
    return None


def _telling_line(error: BaseException) -> str:
    """The first line with `error:` (C++ compilers write it so), else the first line."""
    lines = redact(str(error)).splitlines()
    return next((line for line in lines if "error:" in line), first_line(error))
