"""Using shards written by other programs in place: hard links (or copies) and a manifest beside
them.

llm.c's and modded-nanogpt's scripts write exactly the format of our shards, and publish FineWeb in
it (NAME_val_000000.bin, NAME_train_000001.bin, ...). Their shard borders cut documents in two: the
manifest says `cut_documents`, and such a shard begins with the rest of a document.
"""

import contextlib
import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core.errors import DataError
from outpace.core.files import replace_file, replace_json, sha256_file, sha256_json, storage_error
from outpace.core.log import note
from outpace.data.arrays import Int64
from outpace.data.exports.stream import link
from outpace.data.folder import other_dataset
from outpace.data.manifest import documents_by_split, of_shards
from outpace.data.shard_file import SHARD_NAME, SPLITS, ShardFile
from outpace.data.shards import MANIFEST, Dataset, open_dataset
from outpace.data.token_files import (
    MOST_DOCUMENT_TOKENS,
    TokenFile,
    no_end_of_text,
    token_file_fault,
)
from outpace.tokenizer import Tokenizer, get_tokenizer

VALIDATION = ("val", "valid", "validation", "test")
"""A file is validation if one of these words is in its name, unless `train` comes after it."""


def split_of(path: Path) -> str:
    """The split that a file's name indicates."""
    words = path.stem.lower().replace("-", "_").replace(".", "_").split("_")
    said = [word for word in words if word in (*VALIDATION, "train")]
    return "val" if said and said[-1] in VALIDATION else "train"


def can_adopt(files: Sequence[TokenFile]) -> bool:
    """Whether files can be used as shards in place: llm.c's format, and both splits, by their
    names."""
    splits = {split_of(f.path) for f in files}
    return {f.format for f in files} == {"llm.c"} and splits == set(SPLITS)


def adopt(files: Sequence[TokenFile], output: Path, *, workers: int = 1) -> Dataset:
    """Make a dataset of `files` in `output`, which may be their own folder. Every token is read.
    DataError if a file is not a shard of GPT-2 tokens, or if `output` contains another dataset."""
    tokenizer = get_tokenizer("gpt2")
    _check_names(files, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(output, error) from error
    note(f"reading {sum(f.tokens for f in files):,} tokens in {len(files):,} files, to check them")
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda file: _examine(file, tokenizer), files))
    shards = [shard for shard, _ in found]
    spec = sha256_json(["adopted", tokenizer.vocab_sha256, [[s.file, s.sha256] for s in shards]])
    if (output / MANIFEST).exists():
        dataset = open_dataset(output)
        if dataset.manifest.get("spec") != spec:
            raise other_dataset(output, "made from other files")
        return dataset
    for file, (shard, lengths) in zip(files, found, strict=True):
        target = output / shard.file
        if not (target.exists() and target.samefile(file.path)):
            link(file.path, target)
        replace_file(output / shard.lengths, lengths.astype("<u4").tobytes())
    replace_json(output / MANIFEST, _manifest(output, shards, tokenizer, spec))
    return open_dataset(output)


def _check_names(files: Sequence[TokenFile], output: Path) -> None:
    """DataError if two files have the same name, or if a file would replace a different one."""
    names: dict[str, Path] = {}
    for file in files:
        if not re.fullmatch(SHARD_NAME, file.path.name) or not file.tokens:
            name_fault = "a shard's name is NAME.bin without spaces"
            raise token_file_fault(file.path, name_fault if file.tokens else "it has no tokens")
        other = names.setdefault(file.path.name, file.path)
        if other is not file.path:
            raise DataError(
                "SAME-NAME",
                f"{other} and {file.path} have the same name",
                do="prepare them one after the other, into two folders",
            )
        target = output / file.path.name
        if target.exists() and not target.samefile(file.path):
            with contextlib.suppress(OSError):
                if sha256_file(target) == sha256_file(file.path):
                    continue
            raise DataError(
                "OTHER-DATASET", f"{target} is another file", do="choose another --output"
            )


def _examine(file: TokenFile, tokenizer: Tokenizer) -> tuple[ShardFile, Int64]:
    """Describe a file as a shard, with the lengths of its documents."""
    starts, at, end = [], 0, tokenizer.end_of_text
    for piece in file.pieces(tokenizer.vocab_size):
        starts.append(np.flatnonzero(piece == end) + at)
        at += len(piece)
    borders = np.unique(np.concatenate([[0], *starts, [file.tokens]]))
    lengths = np.diff(borders)
    if (longest := int(lengths.max(initial=0))) > MOST_DOCUMENT_TOKENS:
        raise no_end_of_text(file.path, longest, end)
    shard = ShardFile.parse(
        {
            "file": file.path.name,
            "split": split_of(file.path),
            "tokens": file.tokens,
            "documents": len(lengths),
            "sha256": sha256_file(file.path),
            "lengths_sha256": hashlib.sha256(lengths.astype("<u4").tobytes()).hexdigest(),
            "end_document": 0,
        }
    )
    return shard, lengths


def _manifest(
    output: Path, shards: list[ShardFile], tokenizer: Tokenizer, spec: str
) -> dict[str, Any]:
    documents = documents_by_split(shards)
    base = of_shards(output, shards, tokenizer)
    return base | {
        "source": {"kind": "pretokenized", "files": [s.file for s in shards], "format": "llm.c"},
        "spec": spec,
        "tokenizer": base["tokenizer"] | {"version": "of whoever wrote the files"},
        "cut_documents": True,
        "options": {},
        "split": "by the names of the files",
        "documents": {
            "source": sum(documents.values()),
            "empty_left_out": 0,
            "exact_copies_left_out": 0,
            **documents,
        },
    }
