"""The engine for a Ray cluster: its workers turn chunks into pieces; this process judges and writes
them in order, as with its own threads. The result has the same bytes.

Every machine of the cluster needs this package, and reads the input under the same paths.
"""

import contextlib
import itertools
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from outpace.core.crash import first_line
from outpace.core.errors import OutpaceError, PeerLost
from outpace.core.limits import usable_cores
from outpace.data.encode import Piece, Work, encode_chunk
from outpace.data.sources import Chunk
from outpace.data.sources.remote import of_one_rank
from outpace.data.threads import Task

WAITING_PIECES = 4
"""Maximum number of waiting pieces per chunk; a worker that far ahead of the writer waits."""
LOCAL = "local"

Outcome = Piece | tuple[type[OutpaceError], str, str, str, str]
"""A piece, or the parts of the error that ended the chunk: exceptions with more than one argument
cannot be pickled."""


def outcomes(chunk: Chunk, work: Work, skip: int) -> Iterator[Outcome]:
    """Runs on a worker: the pieces of a chunk, or the error in parts."""
    try:
        yield from encode_chunk(chunk, work, skip)
    except OutpaceError as error:
        yield type(error), error.name, error.what, error.do, error.kept


class RayEngine:
    """Pieces of chunks in order, made by the workers of the cluster at `address`: `auto` for the
    cluster of this machine, HOST:PORT, or `local` to start one here with `workers` processes.
    PeerLost if there is no cluster."""

    def __init__(self, address: str = "auto", workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray: Any = ray
        self.address, self.workers = address, workers

    def __call__(
        self, tasks: Sequence[Task], work: Work
    ) -> Generator[tuple[int, Piece], None, None]:
        ray = self._ray
        self._connect()
        try:
            run = ray.remote(
                num_returns="streaming",
                num_cpus=1,
                _generator_backpressure_num_objects=WAITING_PIECES,
            )(outcomes)
            at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
            shared = ray.put(work)
            waiting, running = iter(tasks), deque[tuple[int, Any]]()
            while True:
                for number, chunk, skip in itertools.islice(waiting, at_once - len(running)):
                    (alone,) = of_one_rank([chunk])  # a worker knows no other chunk
                    running.append((number, run.remote(alone, shared, skip)))
                if not running:
                    return
                number, stream = running.popleft()
                for reference in stream:
                    yield number, piece_of(ray.get(reference))
        except ray.exceptions.RayError as error:
            raise PeerLost(
                "RAY",
                f"a worker failed: {_last_line(error)[:300]}",
                kept="the finished shards",
                do="see the cluster's logs, and run the same command again to continue",
            ) from error
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == LOCAL:
            options |= {
                "num_cpus": self.workers or usable_cores(),
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }
        try:
            _knock(self.address)
            with _our_handlers():
                self._ray.init(address=self.address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise PeerLost(
                "NO-CLUSTER",
                f"no Ray cluster at {self.address}: {first_line(error)[:200]}",
                do="run `ray start --head` first, or use --address local for local processes",
            ) from error


def _last_line(error: BaseException) -> str:
    """The line in which Ray says why a worker failed; those before it are the worker's
    traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _knock(address: str) -> None:
    """OSError if nothing listens at HOST:PORT; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def _our_handlers() -> Iterator[None]:
    """Restore our SIGTERM handler, which stops after the finished shards; Ray installs its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def piece_of(outcome: Outcome) -> Piece:
    """The piece that a worker sent, or its error, raised."""
    if isinstance(outcome, Piece):
        return outcome
    kind, name, what, do, kept = outcome
    raise kind(name, what, do=do, kept=kept)
