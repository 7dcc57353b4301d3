"""The Hugging Face hub through its own client, plus what the client lacks: a time limit on every
wait, retries while the server is busy, and one way to report whatever it raises.
"""

import errno
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outpace.core.crash import first_line
from outpace.core.network import LONGEST_WAIT_S, Answer, retrying, within

CONTACT_S = 8
"""Time limit of one request about a file, including name look-up and connecting."""
DOWNLOAD_S, LEAST_BYTES_PER_S = 60 + LONGEST_WAIT_S, 200_000
"""A download may take this long, which leaves time to wait out a rate limit, plus the time its size
takes at the lowest accepted speed."""
RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)
"""Errors of the local disk, not of the network."""


def faults() -> tuple[type[BaseException], ...]:
    """The exceptions the client may raise. Its HTTP library (requests, httpx, ...) depends on its
    version, so the base classes of its own errors are listed. ImportError is raised for a SOCKS
    proxy if the package it needs is missing."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, ImportError, *HfHubHTTPError.__bases__)


def ask(seconds: float, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call with a time limit, and retry while the server is busy."""
    return retrying(lambda: within(seconds, call, *args, **options), refusal)


def digest_of(path: Path, kind: str) -> str:
    """The hash the hub identifies a file by, in hex: `sha256`, or for `git` the SHA-1 of a git
    blob."""
    if kind == "git":
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        digest = hashlib.new(kind)
    with open(path, "rb") as f:
        hashlib.file_digest(f, lambda: digest)
    return digest.hexdigest()


def refusal(error: BaseException) -> Answer | None:
    """The status of a HfHubHTTPError (whose response is a requests or httpx object) and how long to
    wait, which the hub states as `RateLimit: "api";r=0;t=SECONDS`."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    spent = RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    return response.status_code, response.headers.get("Retry-After", spent[1] if spent else "")


def reason(error: BaseException) -> str:
    """The hub's own message, or else the first line of the error, which the client often hides in
    the cause. The hub gives the same answer for a missing name and a private one."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    told, answer = getattr(error, "server_message", None), refusal(error)
    if told and answer:
        return f"{answer[0]} {first_line(ValueError(told))}"[:200]
    return first_line(error)[:200]
