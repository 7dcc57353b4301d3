"""Checking that a source has not changed since it was read."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from outpace.core.errors import DataError
from outpace.data.arrays import UInt64
from outpace.data.encode import Work, batches, digests_of
from outpace.data.journal import Growing, Journal
from outpace.data.ledger import RECORD
from outpace.data.shard_file import DELETE
from outpace.data.sources import Chunk

TRUSTED = ("sha256:", "git:", "etag:")
"""Beginnings of stamps that identify the content itself."""


def stamps_of(chunks: Sequence[Chunk]) -> str:
    """One hash of all stamps; empty if one of them is empty."""
    stamps = [chunk.stamp for chunk in chunks]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest() if all(stamps) else ""


def is_content(chunks: Sequence[Chunk]) -> bool:
    """Whether all stamps identify content, not modification times."""
    return all(chunk.stamp.startswith(TRUSTED) for chunk in chunks)


def content_of(chunks: Sequence[Chunk], work: Work, documents: int) -> str:
    """SHA-256 of the hashes of a source's first documents, which are read again; empty if there are
    fewer."""
    digest, left = hashlib.sha256(), documents
    for hashes in _hashes(chunks, work):
        digest.update(hashes[:left].astype("<u8").tobytes())
        left -= len(hashes)
        if left <= 0:
            break
    return digest.hexdigest() if left <= 0 else ""


def check_unchanged(output: Path, journal: Journal, chunks: Sequence[Chunk], work: Work) -> None:
    """DataError if the documents that the journal counts as done have changed in the source. If the
    stamps are equal, nothing is read."""
    stamps = stamps_of(chunks)
    done = int(journal.ledger.get("documents", 0))
    if done and not (stamps and stamps == journal.stamps):
        records = Growing(output, "documents", journal.sizes["documents"]).read()
        known = np.frombuffer(records, RECORD)["digest"][:done]
        at = 0
        for hashes in _hashes(chunks, work):
            here = known[at : at + len(hashes)]
            if len(odd := np.flatnonzero(hashes[: len(here)] != here)):
                raise _changed(f"document {at + int(odd[0]) + 1} changed", output)
            at += len(here)
            if at >= done:
                break
        if at < done:
            raise _changed("documents vanished", output)
    journal.stamps = stamps


def _hashes(chunks: Sequence[Chunk], work: Work) -> Iterator[UInt64]:
    for chunk in chunks:
        for _, batch in batches(chunk, work):
            yield digests_of(batch)


def _changed(what: str, output: Path) -> DataError:
    return DataError(
        "INPUT-CHANGED",
        f"{what} since it was prepared in part",
        kept=f"the finished shards in {output}",
        do=f"choose another --output, or {DELETE}",
    )
