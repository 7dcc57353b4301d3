"""Downloading remote files: ahead of their use, resumed after a break, checked.

    FOLDER/PATH          a whole file, with the announced hash
    FOLDER/PATH.part     a download so far; the next run continues it

A file gets its final name only if its size and hash are right. While one file is read the next are
downloaded on threads; several readers in a process share one download.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Protocol

from outpace.core import locks
from outpace.core.crash import first_line
from outpace.core.errors import DataError, NetworkError, OutpaceError, StorageError
from outpace.core.files import fsync_folder, sha256_json, storage_error
from outpace.core.hub import DISK, DOWNLOAD_S, LEAST_BYTES_PER_S, digest_of, reason, refusal
from outpace.core.log import note, warn
from outpace.core.network import BUSY, TRIES, in_background, pause, within
from outpace.core.units import gb

CONNECTIONS = 4
"""Maximum number of files downloaded at the same time."""
CLOSED = (401, 403)
"""HTTP status codes of files that need permission."""
SPARE_BYTES = 64 << 20
"""Disk space to leave free beside the downloads."""


@dataclass(frozen=True)
class Remote:
    """A file on a server."""

    path: str
    """Its local name, below the download folder, with / between the parts."""
    url: str
    size: int
    """In bytes."""
    digest: str = ""
    """`sha256:HEX`, `git:HEX` (SHA-1 of a git blob), or empty if none was announced."""
    version: str = ""
    """The server's identifier of the content, such as an ETag; empty if there is none."""

    def __post_init__(self) -> None:
        parts, drive = PurePosixPath(self.path).parts, PureWindowsPath(self.path).drive
        if not parts or {"..", "/"} & set(parts) or "\\" in self.path or drive:
            raise DataError(
                "REMOTE-NAME",
                f"the name {self.path!r} would lead out of the download folder",
                do="leave that file out",
            )


class Store(Protocol):
    """A server to read remote files from."""

    def read(self, remote: Remote, out: BinaryIO, start: int) -> None:
        """Append to `out`, which has the bytes before `start`, those from `start` on."""
        ...

    def faults(self) -> tuple[type[BaseException], ...]:
        """The exceptions `read` raises if the network or the server fails."""
        ...

    def at_hand(self, remote: Remote) -> Path | None:
        """A whole copy elsewhere on this machine, if there is one; its hash is checked later."""
        ...


@dataclass
class _Copy:
    """One file of a download folder, in this process."""

    coming: Future[Path]
    readers: int = 0
    unwanted: bool = False


_CONNECTIONS = threading.Semaphore(CONNECTIONS)
_COPIES: dict[Path, _Copy] = {}
_LOCK = threading.Lock()


@contextmanager
def fetched(
    remote: Remote, store: Store, folder: Path, then: Sequence[Remote] = ()
) -> Iterator[Path]:
    """The whole file on the local disk while it is read; waits until it is downloaded. The files in
    `then` are downloaded meanwhile.

    NetworkError if the download fails, or has a wrong hash twice.
    """
    with _LOCK:
        for one in (remote, *then):
            target = folder / one.path
            if target not in _COPIES or (one is remote and _is_stale(_COPIES[target])):
                _COPIES[target] = _Copy(in_background(download, one, store, folder))
        copy = _COPIES[folder / remote.path]
        copy.readers += 1
        copy.unwanted = False
    try:
        yield copy.coming.result()
    finally:
        with _LOCK:
            copy.readers -= 1
        if copy.unwanted:
            drop(remote, folder)


def drop(remote: Remote, folder: Path) -> None:
    """Delete a download that is no longer needed, finished or not; if it is being read, once that
    ends."""
    target = folder / remote.path
    with _LOCK:
        if (copy := _COPIES.get(target)) and copy.readers:
            copy.unwanted = True
            return
        _COPIES.pop(target, None)
    for path in (target, _part(remote, folder), target.with_name(f".{target.name}.lock")):
        path.unlink(missing_ok=True)


def announce(remotes: Sequence[Remote], store: Store, folder: Path, *, at_once: int | None) -> None:
    """Print what will be downloaded and the disk space it takes, with at most `at_once` files on
    the disk at the same time (None: all of them). StorageError if the disk has too little space."""
    missing = [r.size - _here(r, store, folder) for r in remotes]
    if not (total := sum(missing)):
        return
    most = sum(sorted(missing)[-at_once:] if at_once else missing)
    note(
        f"{len(remotes):,} files, {gb(sum(r.size for r in remotes))}, of which {gb(total)} to "
        f"download; disk for downloads: {gb(most)}"
        + (
            " at most, as each is deleted after use (--keep_downloads keeps them)"
            if at_once
            else ""
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < most + SPARE_BYTES:
        raise StorageError(
            "DISK",
            f"downloads need {gb(most)} in {folder}, where {gb(free)} are free",
            do="free space or choose another --output"
            + ("" if at_once else ", or leave out --keep_downloads"),
        )


def download(remote: Remote, store: Store, folder: Path) -> Path:
    """Download a file unless a sound copy exists, one process at a time; return its path."""
    target = folder / remote.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = locks.take(target.with_name(f".{target.name}.lock"), locks.FOR_EVER)
        try:
            for found in (target, store.at_hand(remote)):
                if found is not None and found.is_file():
                    if is_sound(found, remote):
                        return found
                    warn(f"{found} differs from {remote.url}; fetching it again")
            part = _part(remote, folder)
            with _CONNECTIONS:
                _complete(remote, store, part)
            os.replace(part, target)
        finally:
            lock.release()
        fsync_folder(target.parent)
    except OSError as error:
        raise storage_error(target, error) from error
    return target


def _complete(remote: Remote, store: Store, part: Path) -> None:
    """Complete `part`. A file with a wrong hash is downloaded once more, then given up."""
    have = f", {gb(_size(part))} of it here" if part.exists() else ""
    note(f"fetching {remote.path}: {gb(remote.size)}{have}")
    for again in (False, True):
        _fetch(remote, store, part)
        if is_sound(part, remote):
            break
        part.unlink()
        if again:
            raise _failed(remote, "it arrived twice with a wrong hash, and is deleted")
        warn(f"{remote.path} does not have the announced hash; fetching it again")
    with open(part, "rb+") as f:
        os.fsync(f.fileno())


def _fetch(remote: Remote, store: Store, part: Path) -> None:
    """Download the rest of `part`, after the bytes it has. Gives up after `TRIES` attempts in a row
    without progress."""
    failures = 0
    if _size(part) > remote.size:
        part.unlink()
    while (have := _size(part)) < remote.size or not part.exists():
        seconds = DOWNLOAD_S + (remote.size - have) / LEAST_BYTES_PER_S
        try:
            with open(part, "r+b" if have else "wb") as out:
                out.seek(have)
                within(seconds, store.read, remote, out, have)
            if not part.exists():  # dropped meanwhile
                raise _failed(remote, "nobody needs it any more")
        except OutpaceError:
            raise
        except store.faults() as error:
            if getattr(error, "errno", None) in DISK:
                raise
            status, retry_after = refusal(error) or (0, "")
            if type(error) is OSError:  # the client found another size: not the file's bytes
                part.unlink()
                failures += TRIES // 2
            else:
                failures = 1 if _size(part) > have else failures + 1
            given_up = isinstance(error, TimeoutError) and "gave up after" in str(error)
            if given_up or failures >= TRIES or (status and status not in BUSY):
                raise _failed(remote, reason(error), status in CLOSED) from error
            wait = pause(failures, retry_after)
            note(f"{remote.path}: {first_line(error)[:120]}; trying again in {wait:.1f} s")
            time.sleep(wait)
        if _size(part) > remote.size:
            part.unlink()
            raise _failed(remote, f"more than the announced {remote.size:,} bytes arrived")


def is_sound(path: Path, remote: Remote) -> bool:
    """Whether size and hash are as announced."""
    if path.stat().st_size != remote.size:
        return False
    kind, _, expected = remote.digest.partition(":")
    return not kind or digest_of(path, kind) == expected


def _failed(remote: Remote, what: str, closed: bool = False) -> NetworkError:
    first = "accept its terms on the hub and set HF_TOKEN" if closed else "check the network"
    return NetworkError(
        "DOWNLOAD",
        f"cannot fetch {remote.url}: {what}",
        kept="what was fetched so far",
        do=f"{first}, then run the same command again",
    )


def _is_stale(copy: _Copy) -> bool:
    """Whether the download failed, or the file was deleted since."""
    done = copy.coming
    return done.done() and (done.exception() is not None or not done.result().exists())


def _here(remote: Remote, store: Store, folder: Path) -> int:
    """How many bytes of a file are already here."""
    target = folder / remote.path
    return remote.size if target.exists() or store.at_hand(remote) else _size(_part(remote, folder))


def _part(remote: Remote, folder: Path) -> Path:
    """The partial download, named by version, because part of another version is useless."""
    version = f".{sha256_json(remote.version)[:8]}" if remote.version else ""
    target = folder / remote.path
    return target.with_name(f"{target.name}{version}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
