"""Access to remote files: the Hugging Face hub and plain HTTP through the hub's client, everything
else (s3://, gs://, memory://, ...) through fsspec. Each store finds files, and reads a file from
any byte on.
"""

import io
import logging
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

from outpace.core.crash import first_line
from outpace.core.errors import DataError, NetworkError, OutpaceError, UsageError
from outpace.core.hub import CONTACT_S, DOWNLOAD_S, ask, faults, reason
from outpace.core.network import within
from outpace.data.downloads import Remote

PIECE = 1 << 20
"""Bytes written at once: at most this is lost with a broken connection."""
REDIRECTS = 5
"""Maximum number of redirects between hosts."""
LISTING_S = 300
"""Time limit for listing a repository or a bucket, which may have many pages."""


def is_url(name: str) -> bool:
    """Whether an input is remote."""
    return "://" in name


@dataclass(frozen=True)
class HttpStore:
    """Files behind http:// and https:// addresses."""

    def find(self, url: str) -> list[Remote]:
        """The file at `url`, with the size reported by the server."""
        import huggingface_hub as hub

        place = url
        try:
            for _ in range(REDIRECTS):  # the client follows only redirects within a host
                found = ask(CONTACT_S, hub.get_hf_file_metadata, place, token=False)
                if found.size is not None or found.location == place:
                    break
                place = urljoin(place, found.location)
        except faults() as error:
            raise _unreachable(url, error) from error
        if found.size is None:
            raise NetworkError(
                "REMOTE", f"{url}: the server does not report its size", do="download it first"
            )
        where = urlsplit(url)
        path = f"{where.hostname}{unquote(where.path)}"
        return [Remote(path, url, found.size, version=found.etag or "")]

    def read(self, remote: Remote, out: BinaryIO, start: int) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import disable_progress_bars

        constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, PIECE)
        disable_progress_bars("huggingface_hub.http_get")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # we report it, in one line
        http_get(
            remote.url,
            out,
            resume_size=start,
            headers=self.headers(),
            expected_size=remote.size,
        )

    def headers(self) -> dict[str, str]:
        return {}

    def faults(self) -> tuple[type[BaseException], ...]:
        return faults()

    def at_hand(self, remote: Remote) -> Path | None:
        return None


@dataclass(frozen=True)
class HubStore(HttpStore):
    """Files of one commit of a dataset on the hub (or a mirror: HF_ENDPOINT; with HF_TOKEN)."""

    name: str
    commit: str

    @classmethod
    def at(cls, name: str, revision: str = "main") -> "HubStore":
        """The dataset at the commit that `revision` (a branch, tag or commit) names now. UsageError
        if there is no such revision."""
        import huggingface_hub as hub

        ask_for = {"revision": revision, "expand": ["sha"]}  # else the answer lists every file
        found = _ask_hub(CONTACT_S, name, hub.HfApi().dataset_info, name, **ask_for)
        return cls(name, found.sha)

    def url(self, path: str) -> str:
        import huggingface_hub as hub

        return str(hub.hf_hub_url(self.name, path, repo_type="dataset", revision=self.commit))

    def content(self, remote: Remote) -> bytes:
        """Read a small file. NetworkError if that fails."""

        def read() -> bytes:
            out = io.BytesIO()
            self.read(remote, out, 0)
            return out.getvalue()

        found: bytes = _ask_hub(DOWNLOAD_S, self.name, read)
        return found

    def find(self, under: str = "") -> list[Remote]:
        """Every file below the folder `under`, sorted by path, with size and hash."""
        import huggingface_hub as hub

        def tree() -> list[Any]:
            return list(
                hub.HfApi().list_repo_tree(
                    self.name,
                    path_in_repo=under or None,
                    recursive=True,
                    revision=self.commit,
                    repo_type="dataset",
                )
            )

        found = _ask_hub(LISTING_S, self.name, tree)
        files = [f for f in found if hasattr(f, "size")]  # the rest are folders
        return [
            Remote(
                f.path,
                self.url(f.path),
                f.lfs.size if f.lfs else f.size,
                f"sha256:{f.lfs.sha256}" if f.lfs else f"git:{f.blob_id}",
            )
            for f in sorted(files, key=lambda f: str(f.path))
        ]

    def headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        return dict(build_hf_headers())

    def at_hand(self, remote: Remote) -> Path | None:
        """A file in the hub's own cache, from an earlier download by any program."""
        import huggingface_hub as hub

        found = hub.try_to_load_from_cache(
            self.name, remote.path, revision=self.commit, repo_type="dataset"
        )
        return Path(found) if isinstance(found, str) else None


@dataclass(frozen=True)
class FsspecStore:
    """Files of any protocol that fsspec supports."""

    protocol: str

    @cached_property
    def files(self) -> Any:
        import fsspec

        try:
            return fsspec.filesystem(self.protocol)
        except (ImportError, ValueError) as error:
            raise UsageError(
                "NO-PROTOCOL",
                f"{self.protocol}:// cannot be used here: {first_line(error)}",
                do="for s3:// and gs:// pip install 'outpace[cloud]', or check the address",
            ) from error

    def find(self, url: str) -> list[Remote]:
        """The files named by a path, glob or folder, sorted by path."""
        try:
            names = within(LISTING_S, self._names, url)
            found = [within(LISTING_S, self.files.info, name) for name in names]
        except OutpaceError:
            raise
        except Exception as error:  # each protocol has its own errors
            raise _unreachable(url, error) from error
        if not found:
            raise DataError("NO-INPUT", f"no file matches {url!r}", do="check the address")
        return [
            Remote(
                PurePosixPath(str(f["name"])).as_posix().lstrip("/"),
                self.files.unstrip_protocol(f["name"]),
                int(f["size"]),
                version=str(f.get("ETag") or f.get("etag") or f.get("md5Hash") or ""),
            )
            for f in sorted(found, key=lambda f: str(f["name"]))
            if f["type"] == "file"
        ]

    def _names(self, url: str) -> list[str]:
        path = self.files._strip_protocol(url)
        found = self.files.glob(path) if set(path) & set("*?[") else self.files.find(path)
        return [str(name) for name in found]

    def read(self, remote: Remote, out: BinaryIO, start: int) -> None:
        with self.files.open(remote.url, "rb") as f:
            f.seek(start)
            shutil.copyfileobj(f, out, PIECE)

    def faults(self) -> tuple[type[BaseException], ...]:
        return (Exception,)  # each protocol has its own

    def at_hand(self, remote: Remote) -> Path | None:
        return None


def store_of(url: str) -> HttpStore | FsspecStore:
    """The store that reads `url`."""
    protocol = url.partition("://")[0].lower()
    return HttpStore() if protocol in ("http", "https") else FsspecStore(protocol)


def _ask_hub(seconds: float, name: str, call: Any, *args: Any, **options: Any) -> Any:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return ask(seconds, call, *args, **options)
    except RevisionNotFoundError as error:
        revision = options.get("revision", "")
        raise UsageError(
            "NO-REVISION",
            f"the dataset {name} has no revision {revision!r}",
            do="name a branch, a tag or a whole commit with --revision",
        ) from error
    except faults() as error:
        raise NetworkError(
            "HUB",
            f"cannot ask the hub for the dataset {name}: {reason(error)}",
            do="check the name and the network (HF_ENDPOINT names a mirror, HF_TOKEN opens what is "
            "gated or private); offline: download it elsewhere, and outpace prepare files --input "
            "FOLDER",
        ) from error


def _unreachable(url: str, error: BaseException) -> NetworkError | DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("NO-INPUT", f"there is no {url}", do="check the address")
    return NetworkError(
        "REMOTE", f"cannot reach {url}: {reason(error)}", do="check the address and the network"
    )
