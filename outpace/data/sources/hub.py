"""Datasets on the Hugging Face hub: any with a text column, OpenWebText, FineWeb and FineWeb-Edu.

A dataset's script is never run: its files are read directly. `OUTPUT/.downloads/listing.json`
records which files of which commit, so that a restart reads the same ones, and does not need the
hub once they are downloaded. A dataset without data files is read from the hub's parquet
conversion.
"""

import fnmatch
import json
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outpace.core.errors import DataError, UsageError
from outpace.core.files import replace_json, storage_error
from outpace.core.log import note
from outpace.core.registry import nearest
from outpace.data.downloads import Remote
from outpace.data.sources import Chunk
from outpace.data.sources.readers import Reading
from outpace.data.sources.remote import Downloading, data_files, remote_chunks
from outpace.data.stores import HubStore

LISTING = "listing.json"
CONVERTED = "refs/convert/parquet"
"""Branch of the hub's own conversion of a dataset: CONFIG/SPLIT/0000.parquet. For a large dataset
that is not parquet itself it has only the first 5 GB, in CONFIG/partial-SPLIT."""
CONVERTED_FILE = re.compile(r"([^/]+)/(partial-)?(.+?)(?:-part\d+)?/\d+\.parquet")
CARD, DEFAULT = "README.md", "default"
Configs = dict[str, dict[str, list[str]]]
"""Configuration -> split -> path patterns. The split is BY_NAME where the files' names tell it."""
BY_NAME = ""
OPENWEBTEXT = "Skylion007/openwebtext"
FINEWEB = {"fineweb": "HuggingFaceFW/fineweb", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
SAMPLES = ("10BT", "100BT", "350BT")
"""FineWeb's samples, by tokens; other names are its crawls, such as CC-MAIN-2024-10."""


@dataclass(frozen=True)
class Wanted:
    """The files of a dataset that are asked for."""

    name: str
    revision: str = "main"
    config: str = ""
    """A configuration named in the dataset's card, or a folder."""
    split: str = "train"
    folder: str = ""
    """The only folder to list, for a dataset with many thousand files."""


class HubSource:
    """The documents of a dataset, file by file, sorted by file name."""

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
            **self.how.record(),
        }

    def finished(self) -> None:
        """Delete the downloads, unless they are to be kept."""
        self.downloading.finish(self.remotes)


def fineweb(kind: str, sample: str, revision: str) -> Wanted:
    """A sample, a crawl or `all` of FineWeb (`kind` fineweb) or FineWeb-Edu (fineweb-edu)."""
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
    """The store and the files, from an earlier run's listing or by asking the hub."""
    path = folder / LISTING
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["wanted"] == asdict(wanted):
            store = HubStore(wanted.name, kept["commit"])  # HF_ENDPOINT may have changed
            return store, [Remote(**f | {"url": store.url(f["path"])}) for f in kept["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged
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
    converts = wanted.revision == Wanted.revision and not wanted.folder
    chosen: list[Remote] = []
    if data_files(everything) or not converts:
        chosen = _of_config(_card(store, everything), everything, wanted)
    if not chosen and converts:
        store, chosen = _conversion(store, wanted)
    if not chosen:
        raise DataError(
            "NO-INPUT",
            f"the dataset {wanted.name} has no parquet, JSON lines, text or tar files"
            + (f" for {where!r}" if (where := wanted.config or wanted.folder) else ""),
            do="look at its files on the hub, and name a folder of them with --config",
        )
    return store, chosen


def _conversion(store: HubStore, wanted: Wanted) -> tuple[HubStore, list[Remote]]:
    """The wanted files in the hub's parquet conversion, or nothing if there is none. DataError if
    the conversion contains only the first part."""
    try:
        store = HubStore.at(wanted.name, CONVERTED)
    except UsageError:  # no such branch
        return store, []
    note(f"{wanted.name} has no data files of its own; taking the hub's parquet conversion")
    everything = store.find()
    configs: Configs = {}
    for remote in everything:
        if found := CONVERTED_FILE.fullmatch(remote.path):
            configs.setdefault(found[1], {}).setdefault(found[3], []).append(remote.path)
    chosen = _of_config(configs, everything, wanted)
    if chosen and (part := CONVERTED_FILE.fullmatch(chosen[0].path)) and part[2]:
        folder = chosen[0].path.rpartition("/")[0]
        raise DataError(
            "PARTIAL",
            f"the hub's parquet conversion of {wanted.name} has only the first part of {folder}",
            do="download the dataset's own files, and outpace prepare files --input FOLDER; for "
            f"that part alone add --revision {CONVERTED} --config {folder}",
        )
    return store, chosen


def _of_config(configs: Configs, everything: list[Remote], wanted: Wanted) -> list[Remote]:
    """The files of the configuration: those listed in `configs`, else those in a folder of that
    name."""
    if wanted.config in configs or (not wanted.config and configs):
        patterns = configs[_the_config(configs, wanted)]
        by_name = BY_NAME in patterns
        split_patterns = patterns.get(BY_NAME if by_name else wanted.split)
        if split_patterns is None:
            raise UsageError(
                "NO-SPLIT",
                f"{wanted.name} has no split {wanted.split!r}{nearest(wanted.split, patterns)}",
                do=f"choose one of {', '.join(patterns)} with --hub_split",
            )
        found = [r for r in everything if any(_fits(r.path, p) for p in split_patterns)]
        return _of_split(found, wanted) if by_name else data_files(found, split="")
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
    """The files of the split by their names, since there is no card. If no name contains the split:
    all files for the default split, else UsageError."""
    found = data_files(remotes, wanted.split)
    if found and wanted.split != Wanted.split and wanted.split not in found[0].path.lower():
        raise UsageError(
            "NO-SPLIT",
            f"no file of {wanted.name} is named {wanted.split!r} ({found[0].path}, ...)",
            do="leave out --hub_split",
        )
    return found


def _the_config(configs: dict[str, Any], wanted: Wanted) -> str:
    for name in (wanted.config, DEFAULT):
        if name in configs:
            return name
    if len(configs) == 1:
        return next(iter(configs))
    raise UsageError(
        "NO-CONFIG",
        f"{wanted.name} has {len(configs)} configurations",
        do=f"choose one of {', '.join(list(configs)[:20])} with --config",
    )


def _card(store: HubStore, everything: list[Remote]) -> Configs:
    """The configurations in the dataset's card, plus the one marked `default: true` under that
    name. Empty without a card, or if the card cannot be parsed."""
    card = next((r for r in everything if r.path == CARD), None)
    if card is None:
        return {}
    from huggingface_hub import DatasetCard
    from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

    text = store.content(card).decode("utf-8", "replace")
    found: Configs = {}
    try:
        for config in DatasetCard(text).data.to_dict().get("configs") or []:
            if isinstance(config, dict) and (config.get("data_files") or config.get("data_dir")):
                patterns = _patterns(config.get("data_files"), config.get("data_dir"))
                found[str(config.get("config_name", DEFAULT))] = patterns
                if config.get("default") is True:
                    found.setdefault(DEFAULT, patterns)
    except (ValueError, YAMLError, TypeError, AttributeError):  # anybody may write a card
        return {}
    return found


def _patterns(data_files: Any, data_dir: str | None) -> dict[str, list[str]]:
    """A card's data_files (one pattern, several, or some per split), which are below its data_dir,
    as split -> patterns."""
    found: dict[str, list[str]] = {}
    if not data_files:
        found[BY_NAME] = ["**"]
    elif isinstance(data_files, dict):
        for split, paths in data_files.items():
            found[str(split)] = [paths] if isinstance(paths, str) else list(paths)
    else:
        for entry in [data_files] if isinstance(data_files, str) else data_files:
            split, paths = "train", entry
            if isinstance(entry, dict):
                split, paths = str(entry.get("split", "train")), entry.get("path") or []
            found.setdefault(split, []).extend([paths] if isinstance(paths, str) else paths)
    return {
        split: [posixpath.normpath(f"{data_dir or '.'}/{path}") for path in paths]
        for split, paths in found.items()
    }


def _fits(path: str, pattern: str) -> bool:
    """Whether a card's pattern matches a path, by fsspec's rules, where `*` stays within a
    folder."""
    from fsspec.utils import glob_translate

    try:
        return bool(re.match(glob_translate(pattern), path))
    except ValueError:  # `**` next to other characters, as in **.jsonl
        return fnmatch.fnmatchcase(path, pattern)
