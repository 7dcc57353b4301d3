"""OpenWebText as it was first published: tars of xz-compressed tars of texts.

    urlsf_subset00.tar (21 of them), or one openwebtext.tar.xz
      openwebtext/urlsf_subset00-1_data.xz ...     each a tar of
        0000000-<hash>.txt ...

The hub's copy was made from these with `re.sub("\\n\\n\\n+", "\\n\\n", text).strip()`, with the
archives, and the texts in each, sorted by name (huggingface/datasets, openwebtext.py). We do the
same, so the documents are the same. Nothing is unpacked to the disk, so names inside an archive are
harmless.
"""

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from outpace.core.errors import DataError
from outpace.data.shard_file import check_regular
from outpace.data.sources import MOST_DOCUMENT_BYTES, Batch, Chunk, Gather, no_column
from outpace.data.sources.files import find_these
from outpace.data.sources.readers import UNREADABLE, fault, file_stamp, reason
from outpace.data.sources.unpack import PIECE, open_input, unpack_xz

BLANK_LINES = re.compile("\n\n\n+")
GROWS = 2.9
"""Bytes of text per byte of .xz."""
MOST_MEMBER_BYTES = 256 << 20
"""Maximum size of one inner compressed tar, which is kept in memory; OpenWebText's have 600 kB."""
FAULTS = (tarfile.TarError, *UNREADABLE)


def is_tar(path: Path) -> bool:
    """Whether a file is such a tar, by its name."""
    name = path.name.lower()
    return name.endswith((".tar", ".tar.xz", ".txz", "_data.xz"))


@dataclass(frozen=True)
class TarChunk:
    """One compressed tar inside a tar, at an offset; or a whole compressed tar."""

    path: str
    member: str
    offset: int
    size_bytes: int
    stamp: str
    documents: int | None = None

    @property
    def name(self) -> str:
        return f"{self.path}#{self.member}" if self.member else self.path

    @property
    def text_bytes(self) -> int:
        return round(self.size_bytes * GROWS)

    def read(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        if columns:
            raise no_column(self.name, columns[0], [])
        gather = Gather()
        try:
            for name, data in self._texts():
                if batch := gather.add(self._text(name, data), label=f"{self.name}/{name}"):
                    yield batch
        except FAULTS as error:
            raise fault(Path(self.name), f"cannot be read: {reason(error)}") from error
        yield from gather.rest()

    def _texts(self) -> Iterator[tuple[str, bytes]]:
        """(name, content) of each text."""
        if not self.member:
            yield from _stream(Path(self.path))
            return
        with open(self.path, "rb") as f:
            f.seek(self.offset)
            packed = f.read(self.size_bytes)
        if len(packed) < self.size_bytes:
            raise EOFError("it ends in the middle of an archive")
        yield from _inner(packed, self.name)

    def _text(self, name: str, data: bytes) -> str:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            what = f"{name}: byte {error.start} is not UTF-8 ({error.reason})"
            raise fault(Path(self.name), what) from error
        return normalised(text)


def normalised(text: str) -> str:
    """Normalise as in the hub's copy: line ends as Python reads them, no three line ends in a row,
    and no white space at either end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return BLANK_LINES.sub("\n\n", text).strip()


def tar_chunks(paths: Sequence[Path]) -> list[Chunk]:
    """One chunk per inner compressed tar, sorted by name; a compressed tar of tars is a single
    chunk."""
    found: list[tuple[str, TarChunk]] = []
    for path in paths:
        stamp = file_stamp(path)
        try:
            check_regular(path)
            if path.suffix.lower() != ".tar":
                size = path.stat().st_size
                found.append((path.name, TarChunk(str(path), "", 0, size, stamp)))
                continue
            inside = list(_members(path, stamp))
        except FAULTS as error:
            raise fault(path, f"is not a whole tar: {reason(error)}") from error
        if not inside:
            raise fault(path, "it contains no .xz archives as OpenWebText's tars do", "unpack it")
        found += inside
    return [chunk for _, chunk in sorted(found, key=lambda entry: entry[0])]


def _members(path: Path, stamp: str) -> Iterator[tuple[str, TarChunk]]:
    with tarfile.open(path, "r:") as tar:
        size = path.stat().st_size
        for member in tar:
            if not member.isreg() or not member.name.endswith(".xz"):
                continue
            if member.offset_data + member.size > size:
                raise EOFError("it is cut short")
            name = PurePosixPath(member.name).name
            yield name, TarChunk(str(path), name, member.offset_data, member.size, stamp)
        with open(path, "rb") as f:
            f.seek(tar.offset)
            end = bytes(tarfile.BLOCKSIZE)  # a tar ends in zeros, which tarfile does not check
            if f.read(tarfile.BLOCKSIZE) != end:
                raise EOFError("it is cut short")


def _stream(path: Path) -> Iterator[tuple[str, bytes]]:
    """The texts of a compressed tar: sorted by name if they are directly in it, in archive order if
    it contains compressed tars."""
    with open_input(path) as f, tarfile.open(fileobj=f, mode="r|") as tar:
        own: list[tuple[str, bytes]] = []
        for member in tar:
            name = PurePosixPath(member.name).name
            if member.isreg() and name.endswith(".xz"):
                yield from _inner(_content(tar, member, MOST_MEMBER_BYTES), f"{path}#{name}")
            elif member.isreg() and name.endswith(".txt"):
                own.append((name, _content(tar, member, MOST_DOCUMENT_BYTES)))
        while f.read(PIECE):  # the compression's checksum is at the end
            pass
    yield from sorted(own)


def _inner(packed: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """The texts of a compressed tar in memory, sorted by name."""
    with tarfile.open(fileobj=io.BytesIO(unpack_xz(packed, Path(where))), mode="r:") as tar:
        texts = [
            (PurePosixPath(m.name).name, _content(tar, m, MOST_DOCUMENT_BYTES))
            for m in tar
            if m.isreg() and m.name.endswith(".txt")
        ]
    yield from sorted(texts)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    if member.size > most:
        raise DataError(
            "DOCUMENT-SIZE",
            f"{member.name} in an archive has {member.size:,} bytes, more than {most:,}",
            do="leave the archive out",
        )
    data = cast(BinaryIO, tar.extractfile(member)).read()
    if len(data) < member.size:
        raise EOFError("it ends in the middle of a file")
    return data


class TarSource:
    """OpenWebText from its original tars on the local disk."""

    name = "openwebtext"

    def __init__(self, patterns: Sequence[str]) -> None:
        do = "check the path; for parquet and text use `outpace prepare files --input`"
        self.paths = find_these(patterns, is_tar, ".tar, .tar.xz or _data.xz", do)

    def chunks(self) -> Sequence[Chunk]:
        return tar_chunks(self.paths)

    def describe(self) -> dict[str, Any]:
        return {
            "files": [p.name for p in self.paths],
            "texts": "as the hub's copy: no three line ends in a row, stripped",
        }
