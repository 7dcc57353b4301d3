"""Files that are somewhere else as chunks of a source: each is fetched when its turn comes, and the
next ones while it is read, so that downloading and tokenising overlap.
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
"""Files that are fetched while one is read, and files that are kept behind it: a restart goes on
at the last finished shard, which may be in one of them."""
DOWNLOADS = ".downloads"
"""Folder below the output."""
FOOTER_BYTES = 1 << 20
"""Of a parquet file's end, which says what columns it has."""
FOOTER_S = 30
READABLE = (*TEXT, *JSONL, *PARQUET)


@dataclass(frozen=True)
class Downloading:
    """How remote files come to this disk, and when they go."""

    output: Path
    keep: bool = False
    readers: int = 1
    """Files that are read at the same time, at most."""

    @property
    def folder(self) -> Path:
        return self.output / DOWNLOADS

    @property
    def at_once(self) -> int | None:
        """How many files lie here at the same time, at most; None for all of them."""
        return None if self.keep else self.readers + 2 * AHEAD

    def finish(self, remotes: Sequence[Remote]) -> None:
        """Delete what was downloaded, unless it is to be kept; the list of the files stays."""
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
    """What is fetched meanwhile."""
    past: Remote | None = None
    """What is deleted when this is read."""
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
            path = found.absolute()  # as labels have it
            for chunk in local_chunks([path], self.how):
                for batch in chunk.read(columns):
                    yield _relabelled(batch, str(path), self.remote.path)
        if self.past is not None:
            drop(self.past, self.folder)


def _relabelled(batch: Batch, here: str, there: str) -> Batch:
    """A batch whose documents are from the remote file, not from its copy on this disk."""
    if batch.labels is None:
        return batch
    return replace(batch, labels=[label.replace(here, there, 1) for label in batch.labels])


def local_chunks(paths: Sequence[Path], how: Reading) -> list[Chunk]:
    """Chunks of files on this disk: text, JSON lines, parquet, and tars of compressed tars."""
    if any(map(is_tar, paths)):
        return tar_chunks(paths)
    return file_chunks(paths, how)


def remote_chunks(
    remotes: Sequence[Remote], store: Store, downloading: Downloading, how: Reading
) -> list[Chunk]:
    """A chunk a file, fetched below the output. Says what there is to download, and refuses a
    column that the first parquet file does not have, before anything is fetched."""
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
    """The same chunks, for a process beside which others read other ones of the same folder: none
    but these are fetched ahead, and each is deleted when it is read, for its part is kept."""
    found: list[Chunk] = []
    for n, chunk in enumerate(chunks):
        if isinstance(chunk, RemoteChunk):
            later = [c for c in chunks[n + 1 : n + 1 + AHEAD] if isinstance(c, RemoteChunk)]
            then = tuple(c.remote for c in later if c.store == chunk.store)
            chunk = replace(chunk, then=then, past=chunk.past and chunk.remote)
        found.append(chunk)
    return found


def data_files(remotes: Sequence[Remote], split: str = "train") -> list[Remote]:
    """The files that hold documents; of a set with several splits those of `split`."""
    known = [r for r in remotes if kind(Path(r.path)) in READABLE or is_tar(Path(r.path))]
    known = [r for r in known if Path(r.path).name.lower() not in ("readme.md", "license.txt")]
    of_kind = _most_of_one_kind(known)
    of_split = [r for r in of_kind if split in r.path.lower()]
    return of_split or of_kind


def _most_of_one_kind(remotes: list[Remote]) -> list[Remote]:
    """Parquet before JSON lines before tars before text: the rest is documentation."""
    for kinds in (PARQUET, JSONL, (".tar",), TEXT):
        found = [r for r in remotes if kind(Path(r.path)) in kinds]
        if found:
            return found
    return []


def _is_packed(remote: Remote) -> bool:
    path = Path(remote.path)
    return path.suffix.lower() in (*COMPRESSED, ".tar") or kind(path) in PARQUET


def _growth(remote: Remote, store: Store, folder: Path, field: str) -> float | None:
    """How much more text than bytes a remote parquet file has, by its last megabyte; None when
    that cannot be told. DataError when it has no column `field`."""
    if (folder / remote.path).exists() or store.at_hand(remote):
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = max(0, remote.size - FOOTER_BYTES)
    tail = io.BytesIO()
    try:
        within(FOOTER_S, store.read, remote, tail, start)
        metadata = pq.read_metadata(_Tail(tail.getvalue(), start))
    except (pa.ArrowException, *store.faults()):
        return None
    names = metadata.schema.to_arrow_schema().names
    if field not in names:
        raise no_column(remote.path, field, names, "--text_field")
    groups = range(metadata.num_row_groups)
    return sum(declared_bytes(metadata, field, n)[1] for n in groups) / remote.size


class _Tail(io.RawIOBase):
    """A file of which only the end is here."""

    def __init__(self, tail: bytes, start: int) -> None:
        self._tail, self._start, self._at = tail, start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._start + len(self._tail)
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, out: Any) -> int:
        if self._at < self._start:
            raise OSError("this part of the file is not here")
        first = self._at - self._start
        data = self._tail[first : first + len(out)]
        out[: len(data)] = data
        self._at += len(data)
        return len(data)


class AddressedSource:
    """Files by paths and addresses, in the order given; those behind an address are fetched."""

    name = "files"

    def __init__(self, patterns: Sequence[str], how: Reading, downloading: Downloading) -> None:
        self.patterns, self.how, self.downloading = patterns, how, downloading
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
                chunks += local_chunks(found, self.how)
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
        return {"files": [redact(name) for name in names], **self.how.told()}

    def finished(self) -> None:
        """Delete the downloads, unless they are to be kept."""
        for found in self._found:
            if not isinstance(found, list):
                self.downloading.finish(found[1])


def _check_places(remotes: Sequence[Remote]) -> None:
    """UsageError for two addresses of one path: the second would get the first one's download."""
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
