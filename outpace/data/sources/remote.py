"""Remote files as chunks of a source: each is downloaded when its turn comes, and the next ones
while it is read, so that downloading and tokenising overlap.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError, UsageError
from outpace.core.network import within
from outpace.core.secrets import redact
from outpace.data.downloads import Remote, Store, announce, drop, fetched
from outpace.data.shards import MANIFEST
from outpace.data.sources import Batch, Chunk, no_column
from outpace.data.sources.files import JSONL, PARQUET, SHRINKS, TEXT, file_chunks, find_files, kind
from outpace.data.sources.readers import Reading, declared_bytes
from outpace.data.sources.tars import is_tar, tar_chunks
from outpace.data.sources.unpack import COMPRESSED
from outpace.data.stores import is_url, store_of

AHEAD = 2
"""Number of files downloaded while one is read, and number of files kept after reading: a restart
continues at the last finished shard, which may need one of them."""
DOWNLOADS = ".downloads"
"""Download folder inside the output."""
FOOTER_BYTES = 1 << 20
"""Size of the end of a parquet file to read, which lists its columns."""
FOOTER_S = 30
READABLE = (*TEXT, *JSONL, *PARQUET)


@dataclass(frozen=True)
class Downloading:
    """Where remote files are downloaded to, and whether they are kept."""

    output: Path
    keep: bool = False
    readers: int = 1
    """Maximum number of files read at the same time."""

    @property
    def folder(self) -> Path:
        return self.output / DOWNLOADS

    @property
    def at_once(self) -> int | None:
        """Maximum number of files on the disk at the same time; None for all of them."""
        return None if self.keep else self.readers + 2 * AHEAD

    def finish(self, remotes: Sequence[Remote]) -> None:
        """Delete the downloads, unless they are to be kept; the listing stays."""
        if self.keep:
            return
        for remote in remotes:
            drop(remote, self.folder)
        for folder in sorted(self.folder.rglob("*"), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@dataclass(frozen=True)
class RemoteChunk:
    """One remote file."""

    remote: Remote
    store: Store
    folder: Path
    how: Reading
    text_bytes: int
    then: tuple[Remote, ...] = ()
    """The files to download meanwhile."""
    past: Remote | None = None
    """A file to delete once this one is read."""
    documents: int | None = None

    @property
    def name(self) -> str:
        return self.remote.path

    @property
    def size_bytes(self) -> int:
        return self.remote.size

    @property
    def stamp(self) -> str:
        version = f"etag:{self.remote.version}" if self.remote.version else ""
        return self.remote.digest or version

    def read(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        with fetched(self.remote, self.store, self.folder, self.then) as found:
            path = found.absolute()  # as in labels
            for chunk in tar_chunks([path]) if is_tar(path) else file_chunks([path], self.how):
                for batch in chunk.read(columns):
                    yield _relabelled(batch, str(path), self.remote.path)
        if self.past is not None:
            drop(self.past, self.folder)


def _relabelled(batch: Batch, here: str, there: str) -> Batch:
    """Replace the local copy's path in a batch's labels with the remote path."""
    if batch.labels is None:
        return batch
    return replace(batch, labels=[label.replace(here, there, 1) for label in batch.labels])


def remote_chunks(
    remotes: Sequence[Remote], store: Store, downloading: Downloading, how: Reading
) -> list[Chunk]:
    """One chunk per remote file, downloaded below the output. Before any download, prints the
    amount and refuses a column that the first parquet file does not have."""
    folder, grown = downloading.folder, SHRINKS
    if not (downloading.output / MANIFEST).exists():
        if remotes and kind(Path(remotes[0].path)) in PARQUET:
            grown = _growth(remotes[0], store, folder, how.text_field) or grown
        announce(remotes, store, folder, at_once=downloading.at_once)
    return [
        RemoteChunk(
            remote,
            store,
            folder,
            how,
            round(remote.size * (grown if _is_packed(remote) else 1)),
            then=tuple(remotes[n + 1 : n + 1 + AHEAD]),
            past=remotes[n - AHEAD] if n >= AHEAD and not downloading.keep else None,
        )
        for n, remote in enumerate(remotes)
    ]


def of_one_rank(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The same chunks for a process that reads only these of a shared folder: only these are
    downloaded ahead, and each is deleted once read, because its part is kept."""
    found: list[Chunk] = []
    for n, chunk in enumerate(chunks):
        if isinstance(chunk, RemoteChunk):
            later = [c for c in chunks[n + 1 : n + 1 + AHEAD] if isinstance(c, RemoteChunk)]
            then = tuple(c.remote for c in later if c.store == chunk.store)
            chunk = replace(chunk, then=then, past=chunk.past and chunk.remote)
        found.append(chunk)
    return found


def data_files(remotes: Sequence[Remote], split: str = "train") -> list[Remote]:
    """The files that contain documents; if there are several splits, those of `split`."""
    known = [r for r in remotes if kind(Path(r.path)) in READABLE or is_tar(Path(r.path))]
    known = [r for r in known if Path(r.path).name.lower() not in ("readme.md", "license.txt")]
    preferred = _preferred_kind(known)
    in_split = [r for r in preferred if split in r.path.lower()]
    return in_split or preferred


def _preferred_kind(remotes: list[Remote]) -> list[Remote]:
    """All files of one kind, parquet before JSON lines before tars before text: other kinds are
    probably documentation."""
    for kinds in (PARQUET, JSONL, (".tar",), TEXT):
        found = [r for r in remotes if kind(Path(r.path)) in kinds]
        if found:
            return found
    return []


def _is_packed(remote: Remote) -> bool:
    path = Path(remote.path)
    return path.suffix.lower() in (*COMPRESSED, ".tar") or kind(path) in PARQUET


def _growth(remote: Remote, store: Store, folder: Path, field: str) -> float | None:
    """The ratio of text to file size of a remote parquet file, from its last megabyte; None if
    unknown. DataError if it has no column `field`."""
    if (folder / remote.path).exists() or store.at_hand(remote):
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    tail = io.BytesIO()
    try:
        within(FOOTER_S, store.read, remote, tail, max(0, remote.size - FOOTER_BYTES))
        metadata = pq.read_metadata(tail)  # all of it is at the file's end
    except (pa.ArrowException, *store.faults()):
        return None
    names = metadata.schema.to_arrow_schema().names
    if field not in names:
        raise no_column(remote.path, field, names, "--text_field")
    groups = range(metadata.num_row_groups)
    return sum(declared_bytes(metadata, field, n)[1] for n in groups) / remote.size


class AddressedSource:
    """Files named by paths and addresses, in the order given; those at an address are
    downloaded."""

    name = "files"

    def __init__(self, patterns: Sequence[str], how: Reading, downloading: Downloading) -> None:
        self.how, self.downloading = how, downloading
        self._found: list[tuple[Store, list[Remote]] | list[Path]] = []
        for pattern in patterns:
            if is_url(pattern):
                store = store_of(pattern)
                self._found.append((store, _readable(pattern, store.find(pattern))))
            else:
                self._found.append(find_files([pattern]))
        _check_places([r for found in self._found if isinstance(found, tuple) for r in found[1]])

    def chunks(self) -> Sequence[Chunk]:
        chunks: list[Chunk] = []
        for found in self._found:
            if isinstance(found, list):
                chunks += file_chunks(found, self.how)
            else:
                store, remotes = found
                chunks += remote_chunks(remotes, store, self.downloading, self.how)
        return chunks

    def describe(self) -> dict[str, Any]:
        names: list[str] = []
        for found in self._found:
            names += (
                [p.name for p in found] if isinstance(found, list) else [r.url for r in found[1]]
            )
        return {"files": [redact(name) for name in names], **self.how.record()}

    def finished(self) -> None:
        """Delete the downloads, unless they are to be kept."""
        for found in self._found:
            if not isinstance(found, list):
                self.downloading.finish(found[1])


def _check_places(remotes: Sequence[Remote]) -> None:
    """UsageError for two addresses with the same local path: the second would get the first one's
    file."""
    urls: dict[str, str] = {}
    for remote in remotes:
        if (other := urls.setdefault(remote.path, remote.url)) != remote.url:
            raise UsageError(
                "SAME-NAME",
                f"{other} and {remote.url} would be one file here, {remote.path}",
                do="prepare them one after the other, into two folders, or download them first",
            )


def _readable(pattern: str, remotes: list[Remote]) -> list[Remote]:
    found = [r for r in remotes if kind(Path(r.path)) in READABLE or is_tar(Path(r.path))]
    if not found:
        raise DataError(
            "FILE-TYPE",
            f"nothing at {pattern!r} is one of {', '.join(READABLE)}",
            do=f"check the address; compressed text may end in {', '.join(COMPRESSED)}",
        )
    if not any(kind(Path(r.path)) in (*JSONL, *PARQUET) for r in found):
        return found
    return [r for r in found if Path(r.path).name != "README.md"]  # it describes the data beside it
