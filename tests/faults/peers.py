"""Several processes of one run, without torchrun: each is the harness's child, so that two start in
a second and each can be sent its own fault."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import free_port
from harness import Child, Fault, start


def start_ranks(
    number: int,
    *arguments: str | Path,
    cwd: Path | Sequence[Path],
    setup: Callable[..., None] | None = None,
    args: tuple[Any, ...] = (),
    faults: Sequence[Fault] = (),
    env: Sequence[Mapping[str, str]] = (),
) -> list[Child]:
    """Start `outpace ARGUMENTS` as `number` processes that make up one run over gloo. Several
    folders in `cwd`, one a process, are hosts without a shared disk; `env` adds to the environment
    of each."""
    port = free_port()
    return [
        start(
            *arguments,
            cwd=cwd if isinstance(cwd, Path) else cwd[rank],
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
                **(env[rank] if env else {}),
            },
        )
        for rank in range(number)
    ]


def call_ranks(
    number: int, *arguments: str | Path, timeout: float = 120, **options: Any
) -> list[Child]:
    """`start_ranks`, and wait for their ends."""
    children = start_ranks(number, *arguments, **options)
    try:
        for child in children:
            child.wait(timeout)
    except AssertionError as late:
        raise AssertionError("\n".join(f"{c.out}{c.err}" for c in children)) from late
    return children
