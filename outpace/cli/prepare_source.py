"""Sources of `outpace prepare`: the flags of each, and how it is made from them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from outpace.core.errors import UsageError

if TYPE_CHECKING:
    from outpace.data.sources import Source
    from outpace.data.sources.hub import Wanted

FLAGS = {
    "files": ("input", "val_input", "text_field", "errors", "separator", "keep_downloads"),
    "openwebtext": ("input", "text_field", "revision", "keep_downloads"),
    "fineweb": ("text_field", "revision", "sample", "keep_downloads"),
    "fineweb-edu": ("text_field", "revision", "sample", "keep_downloads"),
    "huggingface": ("name", "text_field", "revision", "config", "hub_split", "errors",
                    "keep_downloads"),
    "pretokenized": ("name", "input", "revision", "keep_downloads"),
    "pydocs": (),
    "hellaswag": ("input",),
}  # fmt: skip
"""The flags that each source takes. A source without a case in `make_source` gets them by name."""


@dataclass
class SourceOptions:
    """Flags about where the text comes from."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE]")] = ""
    """files (your own text), pydocs (the documentation inside this Python), openwebtext, fineweb,
    fineweb-edu, huggingface NAME (any dataset with a text column), pretokenized, or hellaswag."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
    """For huggingface and pretokenized: a dataset on the hub, such as kjj0/fineweb10B-gpt2."""
    input: tuple[str, ...] = ()
    """Paths, globs, folders or addresses (https://, s3://, gs://, ...). files: .txt, .md, .jsonl,
    .parquet, also .gz .bz2 .xz .zst. openwebtext: its original tars. pretokenized: .bin, .npy."""
    val_input: tuple[str, ...] = ()
    """For files: the validation text, as --input; instead of --val_fraction."""
    text_field: Annotated[str, tyro.conf.arg(aliases=["--column"])] = "text"
    """Field of .jsonl and column of .parquet that has the text, or lists of GPT-2's token ids."""
    errors: Literal["strict", "replace", "skip"] = "strict"
    """What to do with a file or line that is not UTF-8, not JSON or has no text: refuse it, replace
    bad characters with U+FFFD (and refuse the rest), or skip it. The manifest counts what was
    replaced or skipped."""
    separator: str = ""
    """What separates the documents of a .txt or .md file, \\n for a new line, \\t for a tab.
    Default: each file is one document."""
    sample: str = "10BT"
    """For fineweb and fineweb-edu: 10BT, 100BT, 350BT, all, or a crawl such as CC-MAIN-2024-10."""
    revision: str = "main"
    """Branch, tag or commit of a dataset on the hub; the commit is recorded in the manifest."""
    config: str = ""
    """Configuration of a dataset on the hub, or a folder in it."""
    hub_split: str = "train"
    """Split of a dataset on the hub."""
    keep_downloads: bool = False
    """Keep downloaded files, in .downloads below the output, instead of deleting each after use."""


def check_flags(kind: str, options: SourceOptions) -> None:
    """UsageError for an unknown source, and for a flag that the source does not take."""
    if kind not in FLAGS:
        from outpace.data.sources import SOURCES

        SOURCES.check(kind, "hellaswag")
    for flag, default in vars(SourceOptions()).items():
        known = flag == "source" or flag in FLAGS.get(kind, ())
        if not known and getattr(options, flag) != default:
            shown = "a second name" if flag == "name" else f"--{flag}"
            raise UsageError("BAD-VALUE", f"{shown} is not for {kind}", do="leave it out")


def make_source(
    kind: str, options: SourceOptions, output: Path, workers: int, limit_tokens: int | None = None
) -> "Source":
    """Make the source `kind` from these flags, which have been checked."""
    if options.val_input:
        from outpace.data.sources.apart import WithValidation

        train, val = (
            make_source(kind, replace(options, input=paths, val_input=()), output, workers)
            for paths in (options.input, options.val_input)
        )
        return WithValidation(train, val)
    from outpace.data.sources import SOURCES
    from outpace.data.sources.readers import Reading
    from outpace.data.sources.remote import AddressedSource, Downloading
    from outpace.data.sources.tars import TarSource
    from outpace.data.stores import is_url

    make = SOURCES.load(kind)
    # A line end also matches CRLF.
    separator = options.separator.replace("\\r\\n", "\\n").replace("\\n", "\n")
    separator = separator.replace("\r\n", "\n").replace("\\t", "\t")
    how = Reading(options.text_field, options.errors, separator)
    downloading = Downloading(output, options.keep_downloads, workers)
    source: Source
    match kind:
        case "files" if any(map(is_url, options.input)):
            source = AddressedSource(options.input, how, downloading)
        case "files":
            source = make(options.input, how)
        case "pretokenized":
            paths = _token_files(options, output, limit_tokens)
            source = make(paths, downloading=downloading if options.name else None)
        case "openwebtext" if options.input:
            source = TarSource(options.input)
        case "openwebtext" | "fineweb" | "fineweb-edu" | "huggingface":
            source = make(kind, _wanted(kind, options), how, downloading)
        case _:
            source = make(**{flag: getattr(options, flag) for flag in FLAGS[kind]})
    return source


def _token_files(options: SourceOptions, output: Path, limit_tokens: int | None) -> tuple[str, ...]:
    """The token files given, or those of the dataset on the hub."""
    if not options.name:
        return options.input
    if options.input:
        raise UsageError("BAD-VALUE", "--input and a dataset were given", do="leave one out")
    from outpace.data.sources.pretokenized import fetch_token_files

    return tuple(fetch_token_files(options.name, options.revision, output, limit_tokens))


def _wanted(kind: str, options: SourceOptions) -> "Wanted":
    from outpace.data.sources.hub import OPENWEBTEXT, Wanted, fineweb

    if kind == "openwebtext":
        return Wanted(OPENWEBTEXT, options.revision)
    if kind in ("fineweb", "fineweb-edu"):
        return fineweb(kind, options.sample, options.revision)
    if not options.name:
        raise UsageError(
            "NO-NAME", "no dataset was named", do="outpace prepare huggingface OWNER/NAME"
        )
    return Wanted(options.name, options.revision, options.config, options.hub_split)
