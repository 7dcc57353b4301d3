"""`outpace data info DIR`: documents, tokens, lengths, samples of the text, where it comes from."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.log import show, show_json

WIDTH = 40
"""Length of the longest bar, in characters."""
TOP = 10


@dataclass
class Options:
    """Documents, tokens, a histogram of lengths, samples of text decoded back, top sources."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """A prepared dataset: its folder, or its name below data/."""
    samples: Annotated[int, Range(0, 1000)] = 3
    """Number of documents of each split whose beginning is shown."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace data info")
    from outpace.data.info import summary
    from outpace.train.corpus import open_named

    found = summary(open_named(options.dataset), options.samples)
    if options.json:
        show_json(found)
    else:
        show(_page(found))
    return 0


def _page(found: dict[str, Any]) -> str:
    tokenizer, documents = found["tokenizer"], found["documents"]
    lines = [
        f"{found['name']}: {found['shards']:,} shards, {found['bytes'] / 1e6:,.1f} MB, "
        f"fingerprint {found['fingerprint'][:16]}",
        f"tokenizer: {tokenizer['name']} ({tokenizer.get('version', 'version unknown')})",
    ]
    if "split" in found:
        lines.append(f"split: {found['split']}")
    if text := found.get("text_bytes"):
        tokens = sum(found["tokens"].values())
        lines.append(f"text: {text / 1e6:,.1f} MB, {text / tokens:.2f} bytes per token")
    for what, count in documents.items():
        if what.endswith("_left_out") and count:
            lines.append(f"{what.replace('_', ' ')}: {count:,} documents")
    for split in ("train", "val"):
        if (lengths := found[f"{split}_lengths"]) is not None:
            lines += ["", *_split(split, found["tokens"][split], lengths)]
            for sample in found[f"{split}_samples"]:
                lines += [f"  {sample['where']}", f"    {sample['text']!r}"]
    if top := list(found.get("from", {}).items())[:TOP]:
        lines += ["", "most tokens come from:"]
        lines += [f"  {n['tokens']:>14,} tokens, {n['documents']:,} documents: {w}" for w, n in top]
    return "\n".join(lines)


def _split(split: str, tokens: int, lengths: dict[str, Any]) -> list[str]:
    quantiles = ", ".join(f"{name} {value:,}" for name, value in lengths["quantiles"].items())
    number = sum(count for _, _, count in lengths["bins"])
    lines = [
        f"{split}: {tokens:,} tokens in {number:,} document{'s' if number > 1 else ''}",
        f"  tokens per document: mean {lengths['mean']:,.1f}, {quantiles}",
    ]
    most = max(count for _, _, count in lengths["bins"])
    for low, high, count in lengths["bins"]:
        bar = "#" * max(1, round(WIDTH * count / most))
        lines.append(f"  {low:>10,} to {high - 1:>10,}  {count:>10,}  {bar}")
    return lines
