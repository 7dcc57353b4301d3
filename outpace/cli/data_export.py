"""`outpace data export DIR OUTPUT --to FORMAT`: prepared shards in another trainer's format."""

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.core.errors import NetworkError
from outpace.core.log import say, show_json


@dataclass
class Options:
    """Check a prepared dataset's hashes, then write it in another trainer's format."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """A prepared dataset: its folder, or its name below data/."""
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write into; existing files are not replaced. An address (s3://BUCKET/NAME, ...):
    the files are made in a temporary folder in data/, and copied there."""
    to: Literal["nanogpt", "llmc", "megatron", "olmo", "huggingface"]
    """nanogpt: train.bin and val.bin. llmc: .bin shards, for modded-nanogpt too, as hard links.
    megatron: .bin with .idx. olmo: OLMo-core's raw .npy. huggingface: parquet with input_ids."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace data export")

    from outpace.data.exports import EXPORTS
    from outpace.data.publish import publish, staging
    from outpace.data.shards import verify_dataset
    from outpace.data.stores import is_url
    from outpace.train.corpus import open_named

    dataset = open_named(options.dataset)
    verify_dataset(dataset)
    export = EXPORTS.load(options.to).export
    with contextlib.ExitStack() as stack:
        output = Path(options.output)
        if is_url(options.output):  # everything in this folder is copied
            beside = staging(options.output).parent
            beside.mkdir(exist_ok=True)
            own = tempfile.TemporaryDirectory(prefix=".export-", dir=beside)
            output = Path(stack.enter_context(own))
        sizes = {
            str(path.relative_to(output)): path.stat().st_size for path in export(dataset, output)
        }
        if is_url(options.output):
            try:
                publish(output, options.output)
            except NetworkError as error:
                error.kept = "the dataset"  # the exported files are temporary
                raise
    if options.json:
        show_json({"output": options.output, "bytes": sizes})
        return 0
    say(
        f"{options.output}: {len(sizes):,} files of {options.to}, "
        f"{sum(sizes.values()) / 1e6:,.1f} MB: "
        f"{dataset.tokens('train'):,} training and {dataset.tokens('val'):,} validation tokens"
    )
    return 0
