"""Several processes of one run, without torchrun: each is the harness's child, so that two start in
a second and each can be sent its own fault."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import Child, Fault, start


def start_ranks(
    number: int,
    *arguments: str | Path,
    cwd: Path,
    setup: Callable[..., None] | None = None,
    args: tuple[Any, ...] = (),
    faults: Sequence[Fault] = (),
) -> list[Child]:
    """Start `outpace ARGUMENTS` as `number` processes that make up one run over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            *arguments,
            cwd=cwd,
            setup=setup,
            args=args,
            faults=faults,
            env={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(number),
                "LOCAL_WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(number)
    ]


def call_ranks(
    number: int, *arguments: str | Path, timeout: float = 120, **options: Any
) -> list[Child]:
    """`start_ranks`, and wait for their ends."""
    children = start_ranks(number, *arguments, **options)
    for child in children:
        child.wait(timeout)
    return children
