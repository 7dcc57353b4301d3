"""Requests to a server: every wait has a time limit, and a busy server is asked again after a
pause.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from outpace.core.log import note

TRIES = 4
LONGEST_WAIT_S = 300
"""The longest pause between tries, whatever the server asks for; the hub's rate limit covers five
minutes."""
BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP status codes worth retrying."""
Answer = tuple[int, str]
"""HTTP status and the Retry-After header (empty if there is none)."""


def in_background(call: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
    """Run `call` in a daemon thread; the Future has its result or exception."""
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call(*args, **options))
        except BaseException as error:  # raised by result()
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done


def within(seconds: float, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run `call` with a time limit: TimeoutError after `seconds`. A read timeout would limit
    neither a name look-up nor a download that trickles. The abandoned thread ends with the process.
    """
    done = in_background(call, *args, **options)
    try:
        return done.result(seconds)
    except TimeoutError as error:
        if done.done():
            raise
        raise TimeoutError(f"gave up after {seconds:.0f} s") from error


def retrying(call: Callable[[], Any], refusal: Callable[[OSError], Answer | None]) -> Any:
    """Call up to `TRIES` times while the server says that it is busy, with a `pause` between tries.
    `refusal` extracts the server's answer from an error, None if there is none."""
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except OSError as error:
            status, retry_after = refusal(error) or (0, "")
            if status not in BUSY or attempt == TRIES:
                raise
            wait = pause(attempt, retry_after)
            note(f"the server answers {status}; trying again in {wait:.1f} s")
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def pause(attempt: int, retry_after: str = "") -> float:
    """Seconds to wait after the `attempt`-th failure (from 1): as long as the server asks, or twice
    as long each time; with jitter, so that many clients do not return at once."""
    asked = float(retry_after) if retry_after.isdecimal() else 2.0 ** (attempt - 1)
    return min(asked + random.uniform(0, 1), LONGEST_WAIT_S)
