"""Saving in the background: the training thread waits only for a copy in host memory; a writer
thread hashes, writes and commits it. One save at a time. If it fails, the next `poll` raises.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from outpace.checkpoint.store import Tensors
from outpace.core.crash import is_out_of_memory
from outpace.core.errors import CheckpointError, NumericsError, StorageError
from outpace.core.log import warn
from outpace.core.units import gib
from outpace.runtime.hardware import host_memory

RETRY_AFTER_S = 1.0
SPARE_BYTES = 1 << 30
"""Host memory that a copy leaves free."""
Files = Mapping[str, Tensors]
"""File name -> tensors by name."""
Write = Callable[[Files], Path]
"""Commits tensors and returns the checkpoint's folder."""
Done = Callable[[Path, float, float], None]
"""Called with a committed checkpoint, the seconds that training waited, and the seconds in all."""


class Saver:
    """Commits checkpoints in the background, or while training waits if memory is short or
    `background` is off."""

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._buffers: dict[str, dict[str, torch.Tensor]] = {}
        self._waited_s = 0.0
        """Seconds waited for the previous save; they count as part of the next one's stall."""

    def save(self, files: Files, write: Write, done: Done) -> None:
        """Commit `files`. First waits for the previous save, and raises if that failed; if this one
        fails, `poll` raises."""
        self.wait()
        started = time.perf_counter() - self._waited_s
        self._waited_s = 0.0
        copied = self._copy(files) if self.background else None
        if copied is None:
            self._commit(files, write, done, started, None)
            return
        stall_s = time.perf_counter() - started
        arguments = (copied, write, done, started, stall_s)
        thread = threading.Thread(target=self._commit, args=arguments, name="outpace-saver")
        try:
            thread.start()
        except RuntimeError as error:  # a limit on processes
            warn(f"[SAVE-IN-FRONT] {error}: training waits for this save")
            self._commit(copied, write, done, started, None)
            return
        self._thread = thread

    def poll(self) -> None:
        """Raise, once, what a save failed with."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """`join`, then `poll`."""
        self.join()
        self.poll()

    def join(self) -> None:
        """Return when nothing is being written. A failure stays for `poll`."""
        if self._thread is not None:
            started = time.perf_counter()
            self._thread.join()
            self._thread = None
            self._waited_s += time.perf_counter() - started

    def _commit(
        self, files: Files, write: Write, done: Done, started: float, stall_s: float | None
    ) -> None:
        try:
            check_finite(files)
            try:
                path = write(files)
            except StorageError as error:
                if error.name == "CKPT-SPACE":
                    raise
                warn(f"{error.what}; trying once more in {RETRY_AFTER_S:g} s")
                time.sleep(RETRY_AFTER_S)
                try:
                    path = write(files)
                except CheckpointError:  # the first try has taken the name
                    raise error from None
            seconds = time.perf_counter() - started
            done(path, seconds if stall_s is None else stall_s, seconds)
        except Exception as error:  # raised again by `poll`, on the training thread
            self._error = error

    def _copy(self, files: Files) -> Files | None:
        """A copy of the tensors in host memory, or None if memory is short. The next save reuses
        its buffers."""
        try:
            self._check_room(files)
            copied = {
                file: {name: self._copy_one(file, name, t) for name, t in tensors.items()}
                for file, tensors in files.items()
            }
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._buffers.clear()
            self.background = False
            warn(f"[SAVE-IN-FRONT] no memory for a copy ({error}): training waits for each save")
            return None
        if any(t.device.type == "cuda" for tensors in files.values() for t in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return copied

    def _check_room(self, files: Files) -> None:
        """MemoryError if the buffers that are still to be made do not fit."""
        needed = sum(
            tensor.nbytes
            for file, tensors in files.items()
            for name, tensor in tensors.items()
            if name not in self._buffers.get(file, {})
        )
        if needed and (free := host_memory()[1]) < needed + SPARE_BYTES:
            raise MemoryError(f"{gib(needed)} are needed, {gib(free)} are free")

    def _copy_one(self, file: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffers = self._buffers.setdefault(file, {})
        if name not in buffers:
            pin = tensor.device.type == "cuda"
            buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin)
        return buffers[name].copy_(tensor.detach(), non_blocking=True)


def check_finite(files: Files) -> None:
    """NumericsError if a tensor holds NaN or infinity: such a state is never saved."""
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NumericsError(
                    "POISONED",
                    f"{name} ({file}) is not finite, and such a state is not saved",
                    kept="the older checkpoints",
                    do="run the same command again: it continues from the last good one, and skips "
                    "such steps unless --no_guard is given",
                )
