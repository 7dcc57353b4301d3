"""Datasets on the Hugging Face hub: any with a text column, OpenWebText, FineWeb and FineWeb-Edu.

No script of a dataset is ever run: the files are read as they are. Which files, of which commit,
is in `OUTPUT/.downloads/listing.json`, so that a restart reads the same ones, and needs no hub
once they are here. A dataset without files of its own is read from the hub's parquet conversion.
"""

import fnmatch
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError, UsageError
from outpace.core.files import replace_json, storage_error
from outpace.core.log import note
from outpace.core.network import within
from outpace.core.registry import nearest
from outpace.data.downloads import Remote
from outpace.data.sources import Chunk
from outpace.data.sources.readers import Reading
from outpace.data.sources.remote import Downloading, data_files, remote_chunks
from outpace.data.stores import HubStore

LISTING = "listing.json"
CONVERTED = "refs/convert/parquet"
"""The hub's own conversion of a dataset: CONFIG/SPLIT/0000.parquet."""
CARD = "README.md"
CARD_S = 60
OPENWEBTEXT = "Skylion007/openwebtext"
FINEWEB = {"fineweb": "HuggingFaceFW/fineweb", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
SAMPLES = ("10BT", "100BT", "350BT")
"""Of FineWeb, in tokens; another name is one of its crawls, such as CC-MAIN-2024-10."""


@dataclass(frozen=True)
class Wanted:
    """Which files of a dataset."""

    name: str
    revision: str = "main"
    config: str = ""
    """A configuration that the dataset's card names, or a folder."""
    split: str = "train"
    folder: str = ""
    """Where to look at all, for a dataset of many thousand files."""


class HubSource:
    """The documents of a dataset, file by file, in the order of the files' names."""

    def __init__(self, kind: str, wanted: Wanted, how: Reading, downloading: Downloading) -> None:
        self.name, self.wanted, self.how, self.downloading = kind, wanted, how, downloading
        self.store, self.remotes = listing(wanted, downloading.folder, _ask)

    def chunks(self) -> Sequence[Chunk]:
        return remote_chunks(self.remotes, self.store, self.downloading, self.how)

    def describe(self) -> dict[str, Any]:
        return {
            "dataset": self.wanted.name,
            "commit": self.store.commit,
            "files": [r.path for r in self.remotes],
            **self.how.told(),
        }

    def finished(self) -> None:
        """Delete the downloads, unless they are to be kept."""
        self.downloading.finish(self.remotes)


def fineweb(kind: str, sample: str, revision: str) -> Wanted:
    """A sample, a crawl, or `all` of FineWeb (`kind` fineweb) or FineWeb-Edu (fineweb-edu)."""
    folder = "data" if sample == "all" else f"data/{sample}"
    if sample in SAMPLES:
        folder = f"sample/{sample}"
    elif not re.fullmatch(r"all|CC-MAIN-\d{4}-\d\d", sample):
        raise UsageError(
            "BAD-VALUE",
            f"--sample {sample} is not known{nearest(sample, SAMPLES)}",
            do=f"choose {', '.join(SAMPLES)}, all, or a crawl such as CC-MAIN-2024-10",
        )
    return Wanted(FINEWEB[kind], revision, folder=folder)


def listing(
    wanted: Wanted, folder: Path, ask: Callable[[Wanted], tuple[HubStore, list[Remote]]]
) -> tuple[HubStore, list[Remote]]:
    """The store and the files, from the list that an earlier run left, or by asking the hub."""
    path = folder / LISTING
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["wanted"] == asdict(wanted):
            return HubStore(wanted.name, kept["commit"]), [Remote(**f) for f in kept["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or a damaged one
    store, remotes = ask(wanted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    files = [asdict(r) for r in remotes]
    replace_json(path, {"wanted": asdict(wanted), "commit": store.commit, "files": files})
    return store, remotes


def _ask(wanted: Wanted) -> tuple[HubStore, list[Remote]]:
    store = HubStore.at(wanted.name, wanted.revision)
    everything = store.find(wanted.folder)
    chosen = _of_config(store, everything, wanted)
    if not chosen and wanted.revision == "main" and not wanted.folder:
        note(f"{wanted.name} has no data files of its own; taking the hub's parquet conversion")
        store = HubStore.at(wanted.name, CONVERTED)
        everything = store.find()
        chosen = _of_config(store, everything, wanted)
    if not chosen:
        raise DataError(
            "NO-INPUT",
            f"the dataset {wanted.name} has no parquet, JSON lines, text or tar files"
            + (f" for {where!r}" if (where := wanted.config or wanted.folder) else ""),
            do="look at its files on the hub, and name a folder of them with --config",
        )
    return store, chosen


def _of_config(store: HubStore, everything: list[Remote], wanted: Wanted) -> list[Remote]:
    """The files of the configuration: as the card has it, else those in a folder of that name."""
    configs = _card(store, everything)
    if wanted.config in configs or (not wanted.config and configs):
        patterns = configs[_the_config(configs, wanted)]
        of_split = patterns.get(wanted.split)
        if of_split is None:
            raise UsageError(
                "NO-SPLIT",
                f"{wanted.name} has no split {wanted.split!r}{nearest(wanted.split, patterns)}",
                do=f"choose one of {', '.join(patterns)} with --hub_split",
            )
        found = [r for r in everything if any(_fits(r.path, p) for p in of_split)]
        return data_files(found, split="")
    if not wanted.config:
        return _of_split(everything, wanted)
    folder = wanted.config.strip("/")
    inside = [r for r in everything if f"/{folder}/" in f"/{r.path}"]
    if not inside:
        known = sorted({*configs, *(r.path.rpartition("/")[0] for r in everything)} - {""})
        raise UsageError(
            "NO-CONFIG",
            f"{wanted.name} has no configuration or folder {folder!r}{nearest(folder, known)}",
            do=f"choose one of {', '.join(known[:20])}" if known else "leave out --config",
        )
    return _of_split(inside, wanted)


def _of_split(remotes: list[Remote], wanted: Wanted) -> list[Remote]:
    """Of files that no card tells apart, those of the split by their names. Where none is named so,
    all: they are what there is to train on, and no other split than that."""
    found = data_files(remotes, wanted.split)
    if found and wanted.split != Wanted.split and wanted.split not in found[0].path.lower():
        raise UsageError(
            "NO-SPLIT",
            f"no file of {wanted.name} is named {wanted.split!r} ({found[0].path}, ...)",
            do="leave out --hub_split",
        )
    return found


def _the_config(configs: dict[str, Any], wanted: Wanted) -> str:
    for name in (wanted.config, "default"):
        if name in configs:
            return name
    if len(configs) == 1:
        return next(iter(configs))
    raise UsageError(
        "NO-CONFIG",
        f"{wanted.name} has {len(configs)} configurations",
        do=f"choose one of {', '.join(list(configs)[:20])} with --config",
    )


def _card(store: HubStore, everything: list[Remote]) -> dict[str, dict[str, list[str]]]:
    """Configurations of the dataset's card: name -> split -> patterns of paths. None without one,
    or when nothing of it can be read."""
    card = next((r for r in everything if r.path == CARD), None)
    if card is None:
        return {}
    from huggingface_hub import DatasetCard
    from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

    content = io.BytesIO()
    try:
        within(CARD_S, store.read, card, content, 0)
        data = DatasetCard(content.getvalue().decode("utf-8", "replace")).data.to_dict()
        return {
            str(config.get("config_name", "default")): _patterns(config["data_files"])
            for config in data.get("configs") or []
            if isinstance(config, dict) and config.get("data_files")
        }
    except (*store.faults(), YAMLError, TypeError, AttributeError):  # anybody may write a card
        return {}


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """A card's data_files: a pattern, several, or some for each split."""
    if isinstance(data_files, str):
        return {"train": [data_files]}
    if isinstance(data_files, dict):
        return {str(s): [p] if isinstance(p, str) else list(p) for s, p in data_files.items()}
    found: dict[str, list[str]] = {}
    for entry in data_files:
        if isinstance(entry, str):
            found.setdefault("train", []).append(entry)
        elif isinstance(entry, dict):
            paths = entry.get("path") or []
            split = str(entry.get("split", "train"))
            found.setdefault(split, []).extend([paths] if isinstance(paths, str) else paths)
    return found


def _fits(path: str, pattern: str) -> bool:
    """Whether a card's pattern means a file; `**` may match no folder at all."""
    forms = {pattern, pattern.replace("**/", "")}
    return any(fnmatch.fnmatchcase(path, form) for form in forms)
