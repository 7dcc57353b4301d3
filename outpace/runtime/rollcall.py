"""How the processes of a group find each other before they compute: through torchrun's store, or
one of process 0.

Each start of a group has a name, which process 0 makes up and gives to those that are there. Names
keep the starts apart: torchrun starts a group again on the same store, where the addresses of
processes that are gone still are, and each host counts these restarts differently. A process that
ends with an error instead of joining says so, so that the others do not wait for it.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist

from outpace.core import network
from outpace.core.errors import OutpaceError, PeerLost

LEADER = "leader"
LOOK_AGAIN_S = 0.2
LATE_S = 30.0
"""How long a process that failed waits to tell those that have not come yet."""
_BEGUN = threading.Event()
"""Whether this process has ever gone to meet the others."""


def peer_failed(exit_code: int) -> OutpaceError:
    """The error of the other processes when one has failed and said so."""
    error = OutpaceError(
        "PEER-FAILED",
        "another process failed; its own line says why",
        kept="all that was saved",
    )
    error.exit_code = exit_code
    return error


def within(seconds: float, act: Callable[[], Any], why: str = "the store timed out") -> Any:
    """`act()`, or RuntimeError if it takes longer: a store whose host cannot be reached any more
    neither answers nor fails."""
    try:
        return network.within(seconds, act)
    except TimeoutError:
        raise RuntimeError(why) from None


def join(rank: int, world_size: int, timeout_s: float) -> Any:
    """Wait for all processes, and return the store of this start of the group. PeerLost if not all
    come in time, PEER-FAILED if one says that it will not."""
    _BEGUN.set()
    begun = time.monotonic()
    try:
        store = _connect(rank, world_size, timeout_s)
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PeerLost(
            "NO-ANSWER",
            f"nothing answers at {where} (MASTER_ADDR, MASTER_PORT), where the processes meet",
            do="check that process 0 was started, and that this host can resolve that name and "
            "reach that port",
        ) from error

    left_s = timeout_s - (time.monotonic() - begun)
    name = within(timeout_s + LATE_S, lambda: _call(store, rank, world_size, left_s, 0))
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def will_not_join(exit_code: int) -> None:
    """Tell the others that this process ends with an error, if it has not gone to meet them: once
    they have met, they hear of it otherwise."""
    if _BEGUN.is_set():
        return
    with contextlib.suppress(Exception):  # there may be no store, or nobody left to tell
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = _connect(rank, world_size, LATE_S)
        within(LATE_S, lambda: _call(store, rank, world_size, LATE_S, exit_code))


def _connect(rank: int, world_size: int, timeout_s: float) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT, which torchrun keeps, or else process 0."""
    ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    connect = partial(
        dist.TCPStore,  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        ours and rank == 0,
        timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
    )
    # What is there may be another program: the store waits for its first answer without end.
    return within(timeout_s + LOOK_AGAIN_S, connect)


def _call(store: Any, rank: int, world_size: int, patience_s: float, code: int) -> str:
    """The name of this start. `code` is not 0 in a process that ends instead of joining."""
    if rank == 0:
        return _lead(store, world_size, patience_s, code)
    return _follow(store, rank, patience_s, code)


def _lead(store: Any, world_size: int, patience_s: float, code: int) -> str:
    """Process 0: name this start, and answer those that come. The answer names them, so that none
    follows the leader of an earlier start. Once one has failed (or this one, with `code`), all that
    still come within `LATE_S` are told so."""
    name, deadline = uuid.uuid4().hex[:12], time.monotonic() + patience_s
    come: dict[int, str] = {}
    store.set(LEADER, name)
    while True:
        before = len(come)
        for rank in set(range(1, world_size)) - come.keys():
            if (said := _read(store, f"{name}/{rank}")) is not None:
                come[rank], failed = json.loads(said)
                if failed and not code:
                    code, deadline = failed, time.monotonic() + LATE_S
        whole = len(come) == world_size - 1
        if whole or (code and len(come) > before):
            store.set(f"{name}/answer", json.dumps([[*come.values()], code]))
        if whole or time.monotonic() >= deadline:
            break
        time.sleep(LOOK_AGAIN_S)
    if code:
        _let_them_read(store, name, len(come))
        raise peer_failed(code)
    if not whole:
        raise _nobody(_missing(world_size, come))
    return name


def _follow(store: Any, rank: int, patience_s: float, code: int) -> str:
    """Any other process: report to process 0, with `code` if it failed, and wait for the answer."""
    me, leader, deadline = uuid.uuid4().hex[:12], "", time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if (name := _read(store, LEADER)) is not None:
            if name != leader:
                leader = name
                store.set(f"{name}/{rank}", json.dumps([me, code]))
            if (said := _read(store, f"{name}/answer")) is not None:
                come, failed = json.loads(said)
                if me in come:
                    store.add(f"{name}/read", 1)
                    if failed:
                        raise peer_failed(failed)
                    return name
        time.sleep(LOOK_AGAIN_S)
    raise _nobody("process 0")


def _let_them_read(store: Any, name: str, number: int) -> None:
    """Wait a little until all that have come have read the answer: the store may end with us."""
    deadline = time.monotonic() + 10 * LOOK_AGAIN_S
    while store.add(f"{name}/read", 0) < number and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_S)


def _nobody(who: str) -> PeerLost:
    return PeerLost(
        "NOT-ALL-CAME",
        f"{who} did not come to where the processes meet",
        do="check that it was started, with the same address and port (MASTER_ADDR, MASTER_PORT); "
        "a longer --peer_timeout_minutes if it was late",
    )


def _missing(world_size: int, come: dict[int, str]) -> str:
    missing = sorted(set(range(1, world_size)) - come.keys())
    more = f" and {len(missing) - 4:,} more" if len(missing) > 4 else ""
    return f"process {', '.join(map(str, missing[:4]))}{more}"


def _read(store: Any, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None
