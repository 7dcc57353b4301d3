"""Token files written by other programs (token_files.py), as documents for new shards."""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError, UsageError
from outpace.data.adopt import split_of
from outpace.data.downloads import Remote, announce, fetched, is_sound
from outpace.data.shards import MANIFEST
from outpace.data.sources import BYTES_PER_TOKEN, Batch, Chunk, no_column
from outpace.data.sources.files import find_these
from outpace.data.sources.hub import Wanted, listing
from outpace.data.sources.readers import file_stamp
from outpace.data.sources.remote import AHEAD, DOWNLOADS, Downloading
from outpace.data.stores import HubStore
from outpace.data.token_files import MEGATRON_MAGIC, SUFFIXES, TokenFile, documents, recognise
from outpace.tokenizer.gpt2 import Gpt2Tokenizer


@dataclass(frozen=True)
class TokenChunk:
    """One file of tokens."""

    file: TokenFile
    stamp: str
    documents: int | None = None

    @property
    def name(self) -> str:
        return str(self.file.path)

    @property
    def size_bytes(self) -> int:
        return self.file.path.stat().st_size

    @property
    def text_bytes(self) -> int:
        return round(self.file.tokens * BYTES_PER_TOKEN)

    def read(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        if columns:
            raise no_column(self.name, columns[0], [])
        gpt2 = Gpt2Tokenizer
        for ids, lengths in documents(self.file, gpt2.end_of_text, gpt2.vocab_size):
            if len(lengths):
                yield Batch(ids=ids, lengths=lengths)


class PretokenizedSource:
    """The documents of token files, sorted by path. Documents are separated by end-of-text; one
    that a shard border cuts becomes two."""

    name = "pretokenized"

    def __init__(self, patterns: Sequence[str], downloading: Downloading | None = None) -> None:
        self.files = [recognise(path) for path in find_token_files(patterns)]
        self.downloading = downloading

    def by_split(self) -> dict[str, "PretokenizedSource"]:
        """One source per split, by the files' names."""
        sides = {}
        for split in sorted({split_of(f.path) for f in self.files}):
            sides[split] = copy.copy(self)
            sides[split].files = [f for f in self.files if split_of(f.path) == split]
        return sides

    def chunks(self) -> Sequence[Chunk]:
        return [TokenChunk(f, file_stamp(f.path)) for f in self.files]

    def describe(self) -> dict[str, Any]:
        root = Path(os.path.commonpath([f.path.absolute().parent for f in self.files]))
        return {
            "files": [f.path.absolute().relative_to(root).as_posix() for f in self.files],
            "formats": sorted({f.format for f in self.files}),
        }

    def finished(self) -> None:
        """Delete the files that were downloaded for this source; hard links to them remain."""
        if self.downloading is None or self.downloading.keep:
            return
        for file in self.files:
            if self.downloading.folder in file.path.parents:
                file.path.unlink(missing_ok=True)


def fetch_token_files(
    name: str, revision: str, output: Path, limit_tokens: int | None
) -> list[str]:
    """Paths of the token files of a dataset on the hub, such as kjj0/fineweb10B-gpt2, downloaded
    below `output`: all of them, or the validation files and enough others for `limit_tokens`."""
    folder = output / DOWNLOADS
    wanted = Wanted(name, revision, config=f"tokens, at most {limit_tokens}")
    store, remotes = listing(wanted, folder, lambda w: _token_files(w, limit_tokens))
    if not (output / MANIFEST).exists():
        announce(remotes, store, folder, at_once=None)
    paths = []
    for number, remote in enumerate(remotes):
        if (used := output / Path(remote.path).name).exists() and is_sound(used, remote):
            paths.append(str(used))  # from an earlier run
            continue
        with fetched(remote, store, folder, remotes[number + 1 : number + 1 + AHEAD]) as path:
            paths.append(str(path))
    return paths


def _token_files(wanted: Wanted, limit_tokens: int | None) -> tuple[HubStore, list[Remote]]:
    store = HubStore.at(wanted.name, wanted.revision)
    found = [r for r in store.find() if Path(r.path).suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(
            "NO-INPUT",
            f"the dataset {wanted.name} has no {' or '.join(SUFFIXES)} files",
            do=f"for text use `outpace prepare huggingface {wanted.name}`",
        )
    chosen: list[Remote] = []
    tokens = 0
    for remote in found:
        if split_of(Path(remote.path)) == "val":
            chosen.append(remote)
        elif limit_tokens is None or tokens < limit_tokens:
            chosen.append(remote)
            tokens += remote.size // 2
    return store, chosen


def find_token_files(patterns: Sequence[str]) -> list[Path]:
    """The token files named by paths, globs and folders, sorted, without repeats."""
    if not patterns:
        raise UsageError("NO-INPUT", "no --input was given", do="add --input 'PATHS_OR_GLOBS'")
    what = f"{' or '.join(SUFFIXES)} file"
    return find_these(patterns, _is_token_file, what, "check the path; quote globs")


def _is_token_file(path: Path) -> bool:
    """By its suffix; but not a Megatron index that has such a suffix."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    with open(path, "rb") as f:
        return f.read(len(MEGATRON_MAGIC)) != MEGATRON_MAGIC
