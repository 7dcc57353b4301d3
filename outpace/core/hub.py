"""The Hugging Face hub through its own client, with what the client does not promise: an end to
every wait, patience with a busy server, and one kind of reason for whatever it raises.
"""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outpace.core.crash import first_line
from outpace.core.network import Answer, retrying, within

CONTACT_S = 8
"""For one answer about a file; name look-up and connecting included."""
DOWNLOAD_S, LEAST_BYTES_PER_S = 60, 200_000
"""A download may take this long, and more for its size at the least speed."""
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)
"""Errors of the disk that is written to, not of the network."""


def faults() -> tuple[type[BaseException], ...]:
    """What the client raises. Its HTTP library (requests, httpx, ...) depends on its version; the
    bases of its own errors do not."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)


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
    """The status of a HfHubHTTPError, whose response is requests' or httpx's."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    return response.status_code, response.headers.get("Retry-After", "")


def reason(error: BaseException) -> str:
    """The first line that says something; the client often hides it in the cause."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:200]
