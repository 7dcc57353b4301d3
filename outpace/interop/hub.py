"""A model from the Hugging Face hub, in its own cache and by its own client, with what the client
does not promise: an end to every wait, and a content that is what the hub announced.

A blob of the cache is named by its hash, SHA-256 for large files and git's SHA-1 for small ones,
so a download can be checked, and a cached file too, without asking anyone.
"""

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
    """The folder of the hub's model (or dataset) `name` in the local cache, holding `files`, each
    checked.

    NetworkError when the hub cannot be reached and the cache has no sound copy, or sends something
    else twice; StorageError when the cache cannot be written.
    """
    import huggingface_hub as hub

    of = {"repo_type": kind, "revision": revision}
    try:
        try:
            paths = _download(hub, name, files, of)
        except faults() as error:
            if getattr(error, "errno", None) in DISK:
                raise
            paths = _cached(hub, name, files, of)
            if not paths:
                raise
            warn(f"the hub cannot be used ({reason(error)}); taking {name} from the local cache")
    except OutpaceError:
        raise
    except faults() as error:
        if getattr(error, "errno", None) in DISK:
            raise StorageError(
                "STORAGE",
                f"cannot keep {name} in the hub's cache: {reason(error)}",
                do="free space or set HF_HOME to another folder, then run the same command again",
            ) from error
        of_kind = f" --repo-type {kind} --revision {revision}" if kind != "model" else ""
        given = f"FOLDER/{files[0]}" if kind != "model" else "FOLDER"
        raise NetworkError(
            "HUB",
            f"cannot fetch {name} from the hub: {reason(error)}",
            do="check the name and the network; offline: on a machine with a network run "
            f"`hf download {name} {' '.join(files)}{of_kind} --local-dir FOLDER`, and give {given} "
            "here",
        ) from error
    return paths[0].parent


def _download(hub: Any, name: str, files: Sequence[str], of: dict[str, Any]) -> list[Path]:
    """Every file of one commit, checked; a wrong one is fetched once more, then deleted. By HTTP,
    as datasets are: hf_xet goes to another host, which a mirror (HF_ENDPOINT) does not stand in
    for, and may wait for it for ever."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True
    paths = []
    for file in files:
        announced = ask(CONTACT_S, hub.get_hf_file_metadata, hub.hf_hub_url(name, file, **of))
        if not all(map(NAME.fullmatch, (announced.commit_hash or "", announced.etag or ""))):
            raise ValueError("the server that answers is not a hub")  # nor may these be paths
        seconds = DOWNLOAD_S + (announced.size or 0) / LEAST_BYTES_PER_S
        for again in (False, True):
            path = Path(ask(seconds, hub.hf_hub_download, name, file, force_download=again, **of))
            if _is_sound(path):
                break
            warn(f"{file} of {name} does not have the hash that the hub announced")
            if again:
                if path.is_symlink():
                    (path.parent / os.readlink(path)).unlink(missing_ok=True)
                path.unlink()
                raise ValueError(f"{file} came twice with a wrong hash; it is deleted")
        paths.append(path)
    if len({path.parent for path in paths}) > 1:
        raise ValueError("the model changed between one file and the next; run again")
    return paths


def _cached(hub: Any, name: str, files: Sequence[str], of: dict[str, Any]) -> list[Path]:
    """What the cache has of every file, or nothing when one is missing or not sound."""
    try:
        found = [hub.try_to_load_from_cache(name, file, **of) for file in files]
    except (OSError, ValueError):  # no name of a model
        return []
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths if len(paths) == len(files) and all(map(_is_sound, paths)) else []


def _is_sound(path: Path) -> bool:
    """Whether a file of the cache hashes to the name of its blob. One without a blob of its own
    (a file system without links) or with a server's own naming cannot be told, and passes."""
    expected = Path(os.readlink(path)).name if path.is_symlink() else ""
    kinds = {64: "sha256", 40: "git"}
    if not re.fullmatch("[0-9a-f]+", expected) or len(expected) not in kinds:
        note(f"{path.name}: the hub announced no hash, so its content is not checked")
        return True
    return digest_of(path, kinds[len(expected)]) == expected
