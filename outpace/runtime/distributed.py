"""The process group: one process or many, started by torchrun. nccl on CUDA, gloo on CPU."""

import contextlib
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist

from outpace.core.errors import BUG, OutpaceError, PeerLost, UsageError


@dataclass(frozen=True)
class Ranks:
    """Who we are among how many."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    """Processes on this host."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def from_environment() -> Ranks:
    """What torchrun set, or a single process. UsageError when only a part of it is there."""
    if "RANK" not in os.environ:
        return Ranks()
    found = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name, "")
        if name == "LOCAL_WORLD_SIZE" and value in ("", "0"):  # not every launcher knows it
            value = "1"
        if not value.isdecimal() or (name == "WORLD_SIZE" and value == "0"):
            raise _no_ranks(name)
        found.append(int(value))
    return Ranks(*found)


def _no_ranks(name: str) -> UsageError:
    return UsageError(
        "RANKS",
        f"RANK is set in the environment, and {name} is {os.environ.get(name)!r}",
        do="start it by torchrun, or unset RANK for a single process",
    )


LOST = (
    "connection closed",
    "connection reset",
    "connection was likely closed",
    "broken pipe",
    "timed out",
    "timeout",
    "remote process",
)
"""How gloo and nccl word that another process died or fell silent, in a RuntimeError."""


LAST_WORD, WORD_TIMEOUT = "ended-with", timedelta(seconds=5)
ANYONE, LOOK_EVERY_S = "anyone", 1.0


def lost_peer(error: Exception, ranks: Ranks) -> PeerLost | None:
    """PeerLost when `error` is the process group's word that another process is gone."""
    text = str(error).lower()
    if ranks.world_size == 1 or not isinstance(error, RuntimeError):
        return None
    if "address already in use" in text:
        return PeerLost(
            "PORT-IN-USE",
            f"the rendezvous port {os.environ.get('MASTER_PORT', '')} is in use on this host",
            do="choose another (torchrun --master_port, or --standalone) and run it again",
        )
    if not any(words in text for words in LOST):
        return None
    return PeerLost(
        "PEER-LOST",
        f"another process of the group is gone or silent ({text.strip().splitlines()[0][:160]})",
        kept="all that was saved",
        do="run the same command again",
    )


def peer_failed(exit_code: int) -> OutpaceError:
    """What the others end with when a process has failed and said so."""
    error = OutpaceError(
        "PEER-FAILED",
        "another process failed; its own line says why",
        kept="all that was saved",
    )
    error.exit_code = exit_code
    return error


class Group:
    """The few collective operations training needs; each is the identity with one process."""

    def __init__(self, ranks: Ranks, device: torch.device, timeout_s: float = 600.0) -> None:
        """PeerLost when the others do not come."""
        self.ranks, self.device = ranks, device
        self._control: dist.ProcessGroup | None = None
        self._store: Any = None
        self._look_at = 0.0
        if ranks.world_size > 1:
            try:
                self._meet(timedelta(seconds=timeout_s))
            except Exception as error:
                if (lost := lost_peer(error, ranks)) is not None:
                    raise lost from error
                raise

    def _meet(self, timeout: timedelta) -> None:
        if not os.environ.get("MASTER_ADDR"):
            raise _no_ranks("MASTER_ADDR")
        if not os.environ.get("MASTER_PORT", "").isdecimal():
            raise _no_ranks("MASTER_PORT")
        # torchrun restarts a group on the same store, where the last one's addresses still are.
        store, rank, world_size = next(
            dist.rendezvous("env://", timeout=timeout)  # type: ignore[attr-defined]
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            store=self._store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
        # Stop flags travel over gloo, so that asking each step never waits for the GPU.
        self._control = dist.new_group(backend="gloo", timeout=timeout)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of a device tensor over all processes, on each."""
        if self.ranks.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def largest(self, value: int) -> int:
        """Largest of one host integer over all processes, on each."""
        if self._control is None:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self._control)
        return int(box.item())

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in their order, on each."""
        if self._control is None:
            return [value]
        found: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(found, value, group=self._control)
        return found

    def word_on(self, error: Exception) -> OutpaceError | None:
        """In place of the backend's word for a lost process: PeerLost, or that it failed, if it
        said so. Any other error of ours is told the others, who will miss us."""
        lost = error if isinstance(error, PeerLost) else lost_peer(error, self.ranks)
        with contextlib.suppress(Exception):  # who kept the store may be gone
            if self._store is not None:
                self._store.set_timeout(WORD_TIMEOUT)
                if lost is None:
                    self._store.set(LAST_WORD, str(getattr(error, "exit_code", BUG)))
                elif self._store.check([LAST_WORD]):
                    return peer_failed(int(self._store.get(LAST_WORD)))
        return lost

    def anyone(self, here: bool) -> bool:
        """Whether this process or another has ever said so, without waiting for any; looks once in
        `LOOK_EVERY_S`. For work of which each process has another number of pieces."""
        if self._store is None:
            return here
        now = time.monotonic()
        if here:
            self._store.set(ANYONE, "yes")
        elif now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            here = self._store.check([ANYONE])
        return here

    def agrees(self, value: int) -> bool:
        """Whether all processes have the same host integer."""
        return self.largest(value) == -self.largest(-value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        word = self.word_on(error) if isinstance(error, Exception) else None
        self.leave(failed=error is not None)
        if word is not None and word is not error:
            raise word from error

    def leave(self, *, failed: bool = False) -> None:
        """Leave the others, which nccl waits for unless they are given up: after an error they may
        be in the middle of a sum that never ends."""
        if self.ranks.world_size == 1 or not dist.is_initialized():
            return
        if failed and self.device.type == "cuda":
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()
