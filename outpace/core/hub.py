"""The Hugging Face hub through its own client, with what the client does not promise: an end to
every wait, patience with a busy server, and one kind of reason for whatever it raises.
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
"""For one answer about a file; name look-up and connecting included."""
DOWNLOAD_S, LEAST_BYTES_PER_S = 60 + LONGEST_WAIT_S, 200_000
"""A download may take this long, in which the client may wait for the rate limit to end, and more
for its size at the least speed."""
RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)
"""Errors of the disk that is written to, not of the network."""


def faults() -> tuple[type[BaseException], ...]:
    """What the client raises. Its HTTP library (requests, httpx, ...) depends on its version; the
    bases of its own errors do not. ImportError is for a SOCKS proxy that it lacks a package for."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, ImportError, *HfHubHTTPError.__bases__)


def ask(seconds: float, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What `call` returns within `seconds`, asking again while the server is busy."""
    return retrying(lambda: within(seconds, call, *args, **options), refusal)


def digest_of(path: Path, kind: str) -> str:
    """What the hub calls a file by, in hex: its `sha256`, or as `git` names a blob, by SHA-1."""
    if kind == "git":
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        digest = hashlib.new(kind)
    with open(path, "rb") as f:
        hashlib.file_digest(f, lambda: digest)
    return digest.hexdigest()


def refusal(error: BaseException) -> Answer | None:
    """The status of a HfHubHTTPError, whose response is requests' or httpx's, and how long to wait:
    the hub says it in `RateLimit: "api";r=0;t=SECONDS`."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    spent = RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    return response.status_code, response.headers.get("Retry-After", spent[1] if spent else "")


def reason(error: BaseException) -> str:
    """What the hub says, or the first line that says something; the client often hides it in the
    cause. A name that is missing and one that is private get the same answer."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    told, answer = getattr(error, "server_message", None), refusal(error)
    if told and answer:
        return f"{answer[0]} {first_line(ValueError(told))}"[:200]
    return first_line(error)[:200]
