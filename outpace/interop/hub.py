"""A model from the Hugging Face hub, through the hub's own client and cache, plus what the client
lacks: a time limit on every wait, and a check that the content is what the hub announced.

A blob in the cache is named by its hash (SHA-256 for large files, git's SHA-1 for small ones), so a
download, and a cached file too, can be checked offline.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outpace.core.errors import NetworkError, OutpaceError, StorageError
from outpace.core.hub import (
    CONTACT_S,
    DISK,
    DOWNLOAD_S,
    LEAST_BYTES_PER_S,
    ask,
    digest_of,
    faults,
    reason,
)
from outpace.core.log import note, warn

NAME = re.compile(r"[\w-]+")


def fetch(
    name: str, files: Sequence[str], *, kind: str = "model", revision: str | None = None
) -> Path:
    """Return the local cache folder of the hub's model (or dataset) `name`, which contains `files`,
    each checked.

    NetworkError if the hub cannot be reached and the cache has no sound copy, or if a file arrives
    with a wrong hash twice; StorageError if the cache cannot be written.
    """
    import huggingface_hub as hub

    options = {"repo_type": kind, "revision": revision}
    try:
        try:
            paths = _download(hub, name, files, options)
        except faults() as error:
            if getattr(error, "errno", None) in DISK:
                raise
            paths = _cached(hub, name, files, options)
            if not paths:
                raise
            warn(f"the hub cannot be used ({reason(error)}); taking {name} from the local cache")
    except OutpaceError:
        raise
    except faults() as error:
        if getattr(error, "errno", None) in DISK:
            raise StorageError(
                "STORAGE",
                f"cannot store {name} in the hub's cache: {reason(error)}",
                do="free space or set HF_HOME to another folder, then run the same command again",
            ) from error
        kind_flags = f" --repo-type {kind} --revision {revision}" if kind != "model" else ""
        given = f"FOLDER/{files[0]}" if kind != "model" else "FOLDER"
        raise NetworkError(
            "HUB",
            f"cannot fetch {name} from the hub: {reason(error)}",
            do="check the name and the network; offline: on a machine with a network run "
            f"`hf download {name} {' '.join(files)}{kind_flags} --local-dir FOLDER`, and give "
            f"{given} here",
        ) from error
    return paths[0].parent


def _download(hub: Any, name: str, files: Sequence[str], options: dict[str, Any]) -> list[Path]:
    """Download every file from one commit and check it; a wrong file is fetched once more, then
    deleted. By HTTP, as for datasets: hf_xet uses another host, which a mirror (HF_ENDPOINT) does
    not replace, and may wait for it for ever."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True
    paths = []
    for file in files:
        url = hub.hf_hub_url(name, file, **options)
        announced = ask(CONTACT_S, hub.get_hf_file_metadata, url)
        if not all(map(NAME.fullmatch, (announced.commit_hash or "", announced.etag or ""))):
            raise ValueError("the server is not a Hugging Face hub")  # and these may not be paths
        seconds = DOWNLOAD_S + (announced.size or 0) / LEAST_BYTES_PER_S
        for again in (False, True):
            load = functools.partial(hub.hf_hub_download, name, file, force_download=again)
            path = Path(ask(seconds, load, **options))
            if _is_sound(path):
                break
            warn(f"{file} of {name} does not have the hash that the hub announced")
            if again:
                if path.is_symlink():
                    (path.parent / os.readlink(path)).unlink(missing_ok=True)
                path.unlink()
                raise ValueError(f"{file} arrived twice with a wrong hash; it is deleted")
        paths.append(path)
    if len({path.parent for path in paths}) > 1:
        raise ValueError("the model changed between two downloads; run again")
    return paths


def _cached(hub: Any, name: str, files: Sequence[str], options: dict[str, Any]) -> list[Path]:
    """The cached files, or nothing if one of them is missing or damaged."""
    try:
        found = [hub.try_to_load_from_cache(name, file, **options) for file in files]
    except (OSError, ValueError):  # not a valid model name
        return []
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths if len(paths) == len(files) and all(map(_is_sound, paths)) else []


def _is_sound(path: Path) -> bool:
    """Whether a cached file hashes to the name of its blob. A file without a blob (on a file system
    without links), or with a server's own naming, cannot be checked, and passes."""
    expected = Path(os.readlink(path)).name if path.is_symlink() else ""
    kinds = {64: "sha256", 40: "git"}
    if not re.fullmatch("[0-9a-f]+", expected) or len(expected) not in kinds:
        note(f"{path.name}: the hub announced no hash, so its content is not checked")
        return True
    return digest_of(path, kinds[len(expected)]) == expected
