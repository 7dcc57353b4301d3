"""torch.compile, when it works here. A probe compiles something tiny first, so that a missing
compiler or Triton costs a line, not a run.
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
"""A library that nobody has written to for so long, nobody is writing any more."""
TUNED: dict[str, str | int | bool | Callable[..., Any]] = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "epilogue_fusion": True,
    "triton.cudagraphs": False,
}
"""Inductor's `max-autotune-no-cudagraphs` and a search over each kernel's launch parameters."""


def compiled(module: torch.nn.Module, mode: str) -> torch.nn.Module:
    """torch.compile for constant shapes, in the mode `default` or `tuned`. Where equal bits are
    asked for, nothing whose result depends on the choice is chosen by its time."""
    keep_compiled_code()
    equal = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
    options = TUNED | equal if mode == "tuned" else None
    return torch.compile(module, dynamic=False, options=options)  # type: ignore[return-value]


class _OneLine(logging.Filter):
    """A cache that cannot be read or written is compiled around; its traceback tells nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            record.msg = f"{record.getMessage()}, going on without: {record.exc_info[1]!r}"[:200]
            record.args, record.exc_info = (), None
        return True


_one_line = _OneLine()


def keep_compiled_code() -> None:
    """Let the compiler keep its code and graphs in our cache folder, which the next run finds, and
    not in the temporary folder, which a restart empties. A folder that the user has named stays;
    where ours cannot be written, or its path holds a space or a quote, which PyTorch does not quote
    for the C++ compiler, PyTorch's own is taken. What is wrong with it takes a line."""
    for name in CACHE_LOGGERS:
        logging.getLogger(name).addFilter(_one_line)  # the same filter is added once
    # Which tells of a small GPU that it is too small for what nobody asked of it.
    logging.getLogger("torch._inductor.utils").setLevel(logging.ERROR)
    # Importing the compiler sets the variable, if nobody has, to a temporary folder.
    import torch._functorch.config as functorch
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # What is traced of an autograd.Function is part of the cache's key, and the losses are some:
    # passed over, they would be compiled again at every start, and the model with them.
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
    """Delete libraries that a kill cut short: PyTorch takes every file that is there for whole, and
    who loads one that is not dies of SIGBUS."""
    for place, _, names in os.walk(folder):  # what vanishes meanwhile is passed over
        for library in (Path(place, name) for name in names if name.endswith(".so")):
            with contextlib.suppress(OSError):
                while _is_cut(library):
                    if abs(time.time() - library.stat().st_mtime) > LINKED_S:
                        library.unlink()
                    time.sleep(0.05)


def _is_cut(library: Path) -> bool:
    """Whether the file ends before the table that comes last in a library; not for other formats
    than ELF's of 64 bits, little-endian."""
    with open(library, "rb") as f:
        head, size = f.read(64), os.fstat(f.fileno()).st_size
    if len(head) < 64 or not any(head):
        return True
    if not head.startswith(b"\x7fELF\x02\x01"):
        return False
    offset, entry, entries = struct.unpack("<40xQ10xHH2x", head)
    return bool(size < offset + entry * entries)


def why_not(device: torch.device) -> str | None:
    """A reason why torch.compile cannot serve on this device, or None after a probe that ran."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        return "no C++ compiler was found (g++ or clang++)"

    def probe(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ x).sum()

    keep_compiled_code()
    x = torch.ones(8, 8, device=device, requires_grad=True)
    try:
        with warnings.catch_warnings():  # of fp32 products that could be faster
            warnings.simplefilter("ignore")
            torch.compile(probe)(x).backward()
    except Exception as error:  # the compiler's failures have no common type
        cause = getattr(error, "inner_exception", error)
        why = f"a probe failed with {type(cause).__name__}: {_telling_line(cause)[:120]}"
        if isinstance(cause, subprocess.CalledProcessError):  # Triton's, that shows a command line
            why = "the C compiler failed: Triton needs gcc and Python's headers (python3-dev)"
        places = Path(torch.__file__).parent, Path(os.environ.get(CACHE_VARIABLE, ""))
        if quoted := [str(path) for path in places if _needs_quotes(path)]:
            why += f" (PyTorch needs a path without spaces or quotes, and {quoted[0]} is none)"
        return why
    return None


def _telling_line(error: BaseException) -> str:
    """The first line that tells an error, as a C++ compiler does, else the first."""
    lines = redact(str(error)).splitlines()
    return next((line for line in lines if "error:" in line), first_line(error))
