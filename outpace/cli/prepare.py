"""`outpace prepare SOURCE`: text to token shards: files, pydocs; also the HellaSwag questions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from outpace.config.check import Range, check_ranges
from outpace.config.load import parse_flags
from outpace.core.errors import UsageError
from outpace.core.log import say

RANGES = {
    "val_fraction": Range(0, 0.999),
    "limit_tokens": Range(1, 10**15),
    "shard_tokens": Range(1, 2**31 - 1),
    "workers": Range(1, 1024),
}


@dataclass
class Options:
    """Prepare a dataset. Interrupted, the same command goes on where it was."""

    source: Annotated[str, tyro.conf.Positional]
    """files (your own text), pydocs (the documentation inside this Python) or hellaswag."""
    input: tuple[str, ...] = ()
    """Paths, globs or folders: .txt, .md, .jsonl, .parquet, also .gz .bz2 .xz .zst."""
    output: Path | None = None
    """Folder to write. Default: data/SOURCE."""
    text_field: str = "text"
    """Field of .jsonl and .parquet that holds the text."""
    val_fraction: float = 0.01
    """Share of documents held out for validation, by hash of their text."""
    limit_tokens: int | None = None
    """Stop after about this many tokens."""
    shard_tokens: int = 100_000_000
    """Most tokens in a shard; a document is never cut."""
    workers: int | None = None
    """Threads that tokenise. Default: one a core."""
    tokenizer: str = "gpt2"
    """gpt2, or bytes for tests."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace prepare")
    check_ranges(options, RANGES, "outpace prepare")
    output = options.output or Path("data") / options.source

    if options.source == "hellaswag":
        from outpace.evals.tasks import hellaswag_source

        given = Path(options.input[0]) if options.input else None
        path = hellaswag_source.prepare(output, given)
        if options.json:
            say(json.dumps({"path": str(path), "questions": 10_042}, indent=2))
        else:
            say(f"{path}: 10,042 questions, content hash as published")
        return 0

    from outpace.data.prepare import PrepareOptions, prepare
    from outpace.data.sources import SOURCES, Source

    SOURCES.check(options.source)
    make = SOURCES.load(options.source)
    source: Source
    if options.source == "files":
        source = make(list(options.input), options.text_field)
    elif options.input:
        raise UsageError("BAD-VALUE", f"--input is not for {options.source}", do="leave it out")
    else:
        source = make()
    dataset = prepare(
        source,
        output,
        PrepareOptions(
            options.tokenizer, options.val_fraction, options.limit_tokens, options.shard_tokens
        ),
        workers=options.workers,
    )
    if options.json:
        manifest = {k: v for k, v in dataset.manifest.items() if k != "shards"}
        say(json.dumps({"path": str(output), **manifest}, indent=2))
        return 0
    documents = dataset.manifest["documents"]
    say(
        f"{output}: {dataset.tokens('train'):,} training tokens in {documents['train']:,} "
        f"documents, {dataset.tokens('val'):,} validation tokens in {documents['val']:,}; "
        f"{documents['exact_copies_left_out']:,} exact copies and {documents['empty_left_out']:,} "
        f"empty documents left out; unigram entropy {dataset.unigram_entropy:.4f} nats a token"
    )
    for what, number in dataset.manifest["source"].get("normalisation", {}).items():
        if number:
            say(f"  {what.replace('_', ' ')}: {number:,}")
    return 0
