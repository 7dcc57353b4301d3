"""The manifest of a prepared folder: what it contains, from which source, and what was left out."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outpace.data.encode import DIGEST, REASONS
from outpace.data.entropy import unigram_entropy
from outpace.data.ledger import Ledger
from outpace.data.shard_file import SPLITS, ShardFile
from outpace.data.shards import MANIFEST_FORMAT
from outpace.data.sources import Source
from outpace.data.sources.apart import BY_INPUT
from outpace.data.writer import ShardWriter
from outpace.tokenizer import Tokenizer

TOP_LABELS = 100
KEYS = {
    "empty": "empty_left_out",
    "exact copy": "exact_copies_left_out",
    "filtered": "filtered_left_out",
    "contaminated": "contaminated_left_out",
    "near duplicate": "near_duplicates_left_out",
}


def manifest_of(
    output: Path,
    source: Source,
    tokenizer: Tokenizer,
    options: dict[str, Any],
    ledger: Ledger,
    writer: ShardWriter,
    content: str,
) -> dict[str, Any]:
    """The whole manifest. `content` is the hash of the source's documents."""
    shards = sorted(writer.journal.shards, key=lambda s: s.file)
    origin = {"kind": source.name, **source.describe()}
    if ledger.notes:
        origin["normalisation"] = origin.get("normalisation", {}) | ledger.notes
    top = sorted(ledger.labels.items(), key=lambda item: (-item[1][1], item[0]))[:TOP_LABELS]
    return {
        **of_shards(output, shards, tokenizer),
        "source": origin,
        "spec": writer.journal.spec,
        "content": content,
        "options": options,
        "split": _split(ledger, options["split"]),
        "documents": {
            "source": ledger.documents,
            **{KEYS[why]: ledger.removed.get(why, 0) for why in REASONS[1:]},
            **documents_by_split(shards),
        },
        "text_bytes": ledger.text_bytes,
        "from": {label: {"documents": d, "tokens": t} for label, (d, t) in top},
    }


def of_shards(output: Path, shards: Sequence[ShardFile], tokenizer: Tokenizer) -> dict[str, Any]:
    """The part of a manifest about the shards themselves, whatever program wrote them."""
    return {
        "format": MANIFEST_FORMAT,
        "name": output.resolve().name,
        "tokenizer": {
            "name": tokenizer.name,
            "version": tokenizer.version,
            "vocab_size": tokenizer.vocab_size,
            "vocab_sha256": tokenizer.vocab_sha256,
        },
        "end_of_text": "first token of every document",
        "tokens": {split: sum(s.tokens for s in shards if s.split == split) for split in SPLITS},
        "unigram_entropy": unigram_entropy(output, shards, tokenizer.vocab_size),
        "shards": [asdict(s) for s in shards],
    }


def documents_by_split(shards: Sequence[ShardFile]) -> dict[str, int]:
    return {split: sum(s.documents for s in shards if s.split == split) for split in SPLITS}


def _split(ledger: Ledger, split: str) -> str:
    if split == BY_INPUT:
        return "separate text is validation (--val_input, or files named so)"
    if ledger.rules.held_out is not None:
        return "nanoGPT's: permutation of numpy.random.default_rng(2357), first 0.0005"
    if ledger.cut is not None:
        unit = "character" if ledger.text_bytes else "token"
        return f"the only document is cut at {unit} {ledger.cut}"
    return f"{DIGEST} of the text below val_fraction"


def settings_in(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest's source and options as one flat dictionary of JSON values."""
    merged = {**manifest.get("source", {}), **manifest.get("options", {})}
    merged.pop("normalisation", None)
    settings: dict[str, Any] = json.loads(json.dumps(merged))
    return settings
