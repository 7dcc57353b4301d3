"""`outpace prepare SOURCE`: turn text from files, the hub or URLs into token shards; HellaSwag too.
`outpace prepare --verify DIR` checks a prepared folder.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from outpace.cli.prepare_cleaning import CleaningOptions, benchmarks
from outpace.cli.prepare_engines import EngineOptions, prepare_with
from outpace.cli.prepare_source import SourceOptions, check_flags, make_source
from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.errors import DataError, UsageError
from outpace.core.limits import usable_cores
from outpace.core.log import note, say, show, show_json

if TYPE_CHECKING:
    from outpace.data.shards import Dataset
    from outpace.data.sources.apart import WithValidation


@dataclass
class Options(CleaningOptions, EngineOptions, SourceOptions):
    """Prepare a dataset. If interrupted, the same command resumes where it stopped."""

    output: str = ""
    """Folder to write; default: data/SOURCE. An address (s3://BUCKET/NAME, gs://, ...): prepared in
    data/NAME first, then copied there, the manifest last."""
    val_fraction: Annotated[float, Range(0, 0.999)] = 0.01
    """Share of documents held out for validation, by hash of their text."""
    limit_tokens: Annotated[int | None, Range(1, 10**15)] = None
    """Stop after about this many tokens."""
    shard_tokens: Annotated[int, Range(1, 2**31 - 1)] = 100_000_000
    """Maximum number of tokens in a shard; a document is never cut."""
    workers: Annotated[int | None, Range(1, 1024)] = None
    """Threads that tokenise. Default: one per core."""
    tokenizer: str = "gpt2"
    """gpt2, or bytes for tests."""
    verify: Path | None = None
    """Instead of preparing: read and check everything in this prepared folder, change nothing."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would only spin
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")  # Arrow soon needs freed memory again
    gc.set_threshold(100_000)  # imports and vocabularies make many objects, little garbage
    atexit.register(_leave)
    options: Options = parse_flags(Options, argv, prog="outpace prepare")
    if options.verify is not None:
        return _verify(options.verify, options)
    if not options.source:
        raise UsageError("NO-SOURCE", "no source was given", do="outpace prepare --help")
    url = options.output if "://" in options.output else ""
    output = Path(options.output or f"data/{options.source}")
    if url:
        from outpace.data.publish import publish, staging

        output = staging(url)
    check_flags(options.source, options)
    if options.source == "hellaswag":
        path = _hellaswag(options, output)
        if url:
            publish(output, url, [path.name])
        if options.json:
            show_json({"path": str(path), "questions": 10_042})
        else:
            say(f"{path}: 10,042 questions, content hash as published")
        return 0

    dataset = _prepared(options, output)
    if dataset is None:  # the rank that finishes last merges and reports
        return 0
    if url:
        publish(output, url)
    if options.json:
        manifest = {k: v for k, v in dataset.manifest.items() if k != "shards"}
        show_json({"path": str(output), **manifest})
        return 0
    _show_summary(dataset, output)
    return 0


def _hellaswag(options: Options, output: Path) -> Path:
    """The path of the questions, downloaded or from a given file. UsageError for flags of
    datasets."""
    from outpace.evals.tasks import hellaswag_source

    for flag in _given(options, {*vars(options)} - {"source", "input", "output", "json"}):
        raise UsageError("BAD-VALUE", f"--{flag} is not for hellaswag", do="leave it out")
    if len(options.input) > 1:
        raise UsageError("BAD-VALUE", "--input takes one file of questions", do="name one")
    return hellaswag_source.prepare(output, Path(options.input[0]) if options.input else None)


def _leave() -> None:
    """Skip the garbage collection at exit: the system frees all memory at once, and faster. Not if
    something loaded Triton, which complains about objects that are left."""
    if "triton" not in sys.modules:
        gc.freeze()


def _prepared(options: Options, output: Path) -> "Dataset | None":
    from outpace.tokenizer import TOKENIZERS
    from outpace.tokenizer.shared import preload

    TOKENIZERS.check(options.tokenizer)
    preload(options.tokenizer, options.tokenizer_engine)  # while everything else is imported

    from outpace.data.prepare import PrepareOptions
    from outpace.data.sources.apart import BY_INPUT

    workers = options.workers or usable_cores()
    source: Any = make_source(options.source, options, output, workers, options.limit_tokens)
    if options.source == "pretokenized" and _can_use_in_place(source, options):
        from outpace.data.adopt import adopt

        dataset = adopt(source.files, output, workers=workers)
    else:
        apart = _has_validation_text(options)
        if options.source == "pretokenized":
            if by_name := _split_by_name(source, options):
                source, apart = by_name, True
            else:
                note("the split of these files is not kept: validation documents are chosen again")
        prepared = PrepareOptions(
            options.tokenizer,
            0.0 if apart else options.val_fraction,
            options.limit_tokens,
            options.shard_tokens,
            options.limit_documents,
            options.filter,
            options.near_duplicates,
            benchmarks(options.decontaminate, output),
            BY_INPUT if apart else options.split,
        )
        engine = options.tokenizer_engine
        made = prepare_with(
            options, source, output, prepared, workers=workers, tokenizer_engine=engine
        )
        if made is None:
            return None
        dataset = made
    if hasattr(source, "finished"):
        source.finished()
    return dataset


def _has_validation_text(options: Options) -> bool:
    """Whether separate validation text was given. UsageError for flags that contradict it."""
    for flag in _given(options, ("val_fraction", "split")) if options.val_input else ():
        raise UsageError("BAD-VALUE", f"--{flag} and --val_input were given", do="leave one out")
    return bool(options.val_input)


def _can_use_in_place(source: Any, options: Options) -> bool:
    """Whether token files can serve as shards, and no flag asks for other shards."""
    from outpace.data.adopt import can_adopt

    changing = (*vars(CleaningOptions()), "tokenizer", "val_fraction", "shard_tokens")
    if not options.name:
        changing += ("limit_tokens",)
    return not _given(options, changing) and can_adopt(source.files)


def _split_by_name(source: Any, options: Options) -> "WithValidation | None":
    """Token files split by their names (nanoGPT's train.bin and val.bin); None if the names do not
    say, or if another split or a limit was asked for."""
    from outpace.data.sources.apart import WithValidation

    asked = _given(options, ("val_fraction", "split", "limit_tokens", "limit_documents"))
    sides = source.by_split()
    return None if asked or len(sides) < 2 else WithValidation(sides["train"], sides["val"])


def _given(options: Options, flags: Iterable[str]) -> list[str]:
    """The flags among these that are not at their defaults."""
    default = Options()
    return [flag for flag in sorted(flags) if getattr(options, flag) != getattr(default, flag)]


def _show_summary(dataset: "Dataset", output: Path) -> None:
    """Print what the dataset contains, and what was left out."""
    documents, asked = dataset.manifest["documents"], dataset.manifest.get("options", {})
    left_out = {
        what: documents[f"{key}_left_out"]
        for what, key, always in (
            ("exact copies", "exact_copies", True),
            ("empty documents", "empty", True),
            ("filtered", "filtered", asked.get("filters")),
            ("near duplicates", "near_duplicates", asked.get("near_duplicates")),
            ("contaminated", "contaminated", asked.get("decontaminate")),
        )
        if documents.get(f"{key}_left_out") or always
    }
    told = [f"{number:,} {what}" for what, number in left_out.items()]
    say(
        f"{output}: {dataset.tokens('train'):,} training tokens in {documents['train']:,} "
        f"documents, {dataset.tokens('val'):,} validation tokens in {documents['val']:,}; "
        f"{', '.join(told[:-1])} and {told[-1]} left out; "
        f"unigram entropy {dataset.unigram_entropy:.4f} nats per token"
    )
    if removed := dataset.manifest.get("removed"):
        say(f"  the documents left out are listed in {output / removed['file']}")
    for what, number in dataset.manifest["source"].get("normalisation", {}).items():
        if number:
            say(f"  {what.replace('_', ' ')}: {number:,}")


def _verify(folder: Path, options: Options) -> int:
    """Check a prepared folder; DataError says what is wrong with it."""
    from outpace.data.shards import open_dataset, verify_dataset

    if options.source:
        raise UsageError("BAD-VALUE", "--verify takes no source", do=f"leave out {options.source}")
    try:
        dataset = open_dataset(folder)
        verify_dataset(dataset)
    except DataError as fault:
        if options.json:
            show_json({"folder": str(folder), "fault": fault.what})
        raise
    counts = {split: dataset.tokens(split) for split in ("train", "val")}
    if options.json:
        found = {"folder": str(folder), "fault": None, "shards": len(dataset.shards)}
        show_json({**found, "tokens": counts})
    else:
        show(
            f"{folder}: whole, every hash is right; {len(dataset.shards):,} shards, "
            f"{counts['train']:,} training and {counts['val']:,} validation tokens"
        )
    return 0
