"""Copying a finished folder to a place fsspec can reach (s3://, gs://, ...): every file, the
manifest last, so that whoever sees the manifest sees the whole dataset. An interrupted copy is
continued.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError, NetworkError, OutpaceError
from outpace.core.hub import reason
from outpace.core.log import note
from outpace.data.shards import MANIFEST
from outpace.data.stores import FsspecStore

STAGING = Path("data")
"""Where a dataset for a remote output is prepared first."""


def staging(url: str) -> Path:
    """The local folder to be copied to `url`. UsageError if the protocol is not supported here."""
    _ = _files(url)
    return STAGING / url.rstrip("/").rpartition("/")[2]


def publish(folder: Path, url: str, only: Sequence[str] = ()) -> list[str]:
    """Copy the files of `folder` (except hidden ones), or `only` the given ones, to `url`, and
    return their addresses. DataError if another dataset is there; NetworkError if copying fails:
    the next call continues."""
    files, url = _files(url), url.rstrip("/")
    names = sorted(only) or sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    names.sort(key=lambda name: name == MANIFEST)
    try:
        if MANIFEST in names and files.exists(f"{url}/{MANIFEST}"):
            if files.cat_file(f"{url}/{MANIFEST}") == (folder / MANIFEST).read_bytes():
                return [f"{url}/{name}" for name in names]
            raise DataError(
                "OTHER-DATASET",
                f"{url} contains another dataset",
                kept=f"everything in {folder}",
                do="choose another --output, or delete what is there",
            )
        for name in names:
            _send(files, folder / name, f"{url}/{name}", may_be_there=MANIFEST in names)
    except OutpaceError:
        raise
    except Exception as error:  # each protocol has its own errors
        raise NetworkError(
            "UPLOAD",
            f"cannot write {url}: {reason(error)}",
            kept=f"everything in {folder}",
            do="check address, credentials and network, then run the same command again",
        ) from error
    return [f"{url}/{name}" for name in names]


def _send(files: Any, path: Path, target: str, *, may_be_there: bool) -> None:
    if may_be_there and _has(files, target, path):
        return
    note(f"writing {target}")
    files.makedirs(target.rpartition("/")[0], exist_ok=True)
    files.put_file(str(path), target)
    if not _has(files, target, path):
        raise OSError(f"what arrived at {target} has another size")


def _has(files: Any, target: str, path: Path) -> bool:
    try:
        return int(files.info(target)["size"]) == path.stat().st_size
    except FileNotFoundError:
        return False


def _files(url: str) -> Any:
    return FsspecStore(url.partition("://")[0].lower()).files
