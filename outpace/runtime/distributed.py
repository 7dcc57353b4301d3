"""The process group: one process, or several started by torchrun. nccl on CUDA, gloo on CPU."""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Self

import torch
import torch.distributed as dist

from outpace.core.errors import BUG, OutpaceError, PeerLost, UsageError
from outpace.runtime.interface import choose_interface
from outpace.runtime.rollcall import join, peer_failed, within


@dataclass(frozen=True)
class Ranks:
    """This process's place in the group."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    """Processes on this host."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def ranks_from_environment() -> Ranks:
    """The ranks set by torchrun, or a single process. UsageError if only some of the variables are
    set."""
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
        do="start it with torchrun, or unset RANK for a single process",
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
"""How gloo and nccl report, in a RuntimeError, that another process died or stopped answering."""


NOT_IN_TIME = "the processes did not connect in time"
LAST_WORD, WORD_S = "ended-with", 5.0
ANYONE, LOOK_EVERY_S = "anyone", 1.0


def lost_peer(error: Exception, ranks: Ranks) -> PeerLost | None:
    """PeerLost if `error` means that another process of the group is gone."""
    text = str(error).lower()
    if ranks.world_size == 1 or not isinstance(error, RuntimeError):
        return None
    if "address already in use" in text:
        return PeerLost(
            "PORT-IN-USE",
            f"the rendezvous port {os.environ.get('MASTER_PORT', '')} is in use on this host",
            do="choose another (torchrun --master_port, or --standalone) and run it again",
        )
    if "connectfullmesh" in text or NOT_IN_TIME in text:
        return PeerLost(
            "NO-CONNECTION",
            "the processes have met, but cannot connect to each other",
            do="run the same command again; if it comes back, set GLOO_SOCKET_IFNAME to the "
            "network interface that leads to the other hosts, and open its ports",
        )
    if not any(words in text for words in LOST):
        return None
    return PeerLost(
        "PEER-LOST",
        "another process of the group died or stopped answering "
        f"({text.strip().splitlines()[0][:160]})",
        kept="all that was saved",
        do="run the same command again",
    )


class Group:
    """The few collective operations that training needs: `sum` on the device, the others on the
    host, over gloo. Every process must call them in the same order, except `anyone` and
    `exchange_failure`; a single process gets back its input."""

    def __init__(self, ranks: Ranks, device: torch.device, timeout_s: float = 600.0) -> None:
        """PeerLost if the other processes do not join."""
        self.ranks, self.device = ranks, device
        self._control: dist.ProcessGroup | None = None
        self._store: Any = None
        self._look_at, self._timeout_s = 0.0, timeout_s
        if ranks.world_size > 1:
            try:
                self._meet(timeout_s)
            except Exception as error:
                if (lost := lost_peer(error, ranks)) is not None:
                    raise lost from error
                raise

    def _meet(self, timeout_s: float) -> None:
        if not os.environ.get("MASTER_ADDR"):
            raise _no_ranks("MASTER_ADDR")
        if not os.environ.get("MASTER_PORT", "").isdecimal():
            raise _no_ranks("MASTER_PORT")
        ranks, timeout = self.ranks, timedelta(seconds=timeout_s)
        self._store = join(ranks.rank, ranks.world_size, timeout_s)
        if ranks.local_world_size < ranks.world_size:
            choose_interface(os.environ["MASTER_ADDR"])
        start = partial(
            dist.init_process_group,
            "nccl" if self.device.type == "cuda" else "gloo",
            store=self._store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
        )
        # gloo waits without end for a process that cannot reach it. nccl connects later, and from
        # the thread whose GPU is chosen.
        at_most = timeout_s + WORD_S
        if self.device.type == "cuda":
            start()
        else:
            within(at_most, start, NOT_IN_TIME)
        # Stop flags go over gloo, so that checking them each step never waits for the GPU.
        control = partial(dist.new_group, backend="gloo", timeout=timeout)
        self._control = within(at_most, control, NOT_IN_TIME)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum a device tensor over all processes."""
        if self.ranks.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def max(self, value: int) -> int:
        """Maximum of one host integer over all processes."""
        if self._control is None:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self._control)
        return int(box.item())

    def barrier(self) -> None:
        """Wait for all processes."""
        self.max(0)

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, in rank order."""
        if self._control is None:
            return [value]
        found: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(found, value, group=self._control)
        return found

    def broadcast(self, value: Any) -> Any:
        """The value of process 0; those of the others do not matter."""
        if self._control is None:
            return value
        box = [value if self.ranks.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def broadcast_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The named tensors, on the CPU, of process 0; the others may pass none."""
        if self._control is None:
            return dict(tensors)
        found = {}
        for name, shape, dtype in self.broadcast(
            [(name, t.shape, t.dtype) for name, t in tensors.items()]
        ):
            box = (
                tensors[name].contiguous()
                if self.ranks.is_main
                else torch.empty(shape, dtype=dtype)
            )
            dist.broadcast(box, src=0, group=self._control)
            found[name] = box
        return found

    def exchange_failure(self, error: Exception) -> OutpaceError | None:
        """If `error` means a lost process: PEER-FAILED if that process has reported its failure,
        else PeerLost. Any other error is our own: report it to the others, and return None."""
        lost, store = lost_peer(error, self.ranks), self._store
        if isinstance(error, PeerLost):
            lost = error
        with contextlib.suppress(Exception):  # the store's host may be gone
            if store is not None and lost is None:
                code = str(getattr(error, "exit_code", BUG))
                within(WORD_S, lambda: store.set(LAST_WORD, code))
            elif store is not None and within(WORD_S, lambda: store.check([LAST_WORD])):
                return peer_failed(int(within(WORD_S, lambda: store.get(LAST_WORD))))
        return lost

    def anyone(self, here: bool) -> bool:
        """Whether any process has ever passed True, without waiting for the others; asks the store
        at most once per `LOOK_EVERY_S`. For work that is divided into unequal numbers of pieces."""
        store, now = self._store, time.monotonic()
        if store is None:
            return here
        if here:
            within(self._timeout_s, lambda: store.set(ANYONE, "yes"))
        elif now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            here = within(self._timeout_s, lambda: store.check([ANYONE]))
        return here

    def agrees(self, value: int) -> bool:
        """Whether all processes have the same host integer."""
        return self.max(value) == -self.max(-value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        word = self.exchange_failure(error) if isinstance(error, Exception) else None
        self.leave(failed=error is not None)
        if word is not None and word is not error:
            raise word from error

    def leave(self, *, failed: bool = False) -> None:
        """Leave the group. After an error on CUDA the communicator is aborted: nccl would otherwise
        wait for peers that may be in the middle of a sum that never ends."""
        if self.ranks.world_size == 1 or not dist.is_initialized():
            return
        if failed and self.device.type == "cuda":
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()
