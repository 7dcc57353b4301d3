"""Which dataset a run reads: the one named, or a default that is said aloud."""

import contextlib
import json
import time
from pathlib import Path

from outpace.config.datasets import WEIGHT, parse_datasets
from outpace.config.presets import GPT2_VOCAB
from outpace.config.schema import RunConfig
from outpace.core.errors import DataError, RunInUse, UsageError
from outpace.core.log import note, warn
from outpace.core.registry import nearest
from outpace.core.runfolder import RunFolder
from outpace.data.documents import read_tokens, unread
from outpace.data.mixture import Mixture
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shards import JOURNAL, MANIFEST, Dataset, open_dataset
from outpace.data.sources.pydocs import PydocsSource
from outpace.data.token_files import SUFFIXES
from outpace.train.plan import DatasetFacts

DATA = Path("data")
"""Where prepared datasets live by name."""
KNOWN = ("openwebtext", "fineweb", "fineweb-edu", "pydocs")
"""What `outpace prepare` makes by its name alone."""
OPENWEBTEXT = DatasetFacts("openwebtext", GPT2_VOCAB, 9_035_582_198, 4_434_897)
"""What a plan assumes without a dataset: its size as nanoGPT prepares it (nanoGPT,
data/openwebtext/prepare.py)."""


def is_default_prepared() -> bool:
    """Whether `--dataset auto` finds a dataset without making one."""
    return any((DATA / name / MANIFEST).exists() for name in ("openwebtext", "pydocs"))


def find_dataset(name: str, *, make: bool = False, is_main: bool = True) -> Path:
    """The folder of `--dataset`: a path, or a name below data/. With `make`, pydocs is
    made when nothing else is there and nothing was asked for, by the host's first process."""
    if name == "auto":
        if (DATA / "openwebtext" / MANIFEST).exists():
            if is_main:
                note("dataset: data/openwebtext")
            return DATA / "openwebtext"
        if not make and not is_default_prepared():
            raise DataError(
                "NO-DATASET", "no dataset is prepared", do="outpace prepare pydocs, or --dataset"
            )
        if is_main:
            warn(
                "no --dataset was given and data/openwebtext is not prepared: "
                f"{'training on' if make else 'reading'} pydocs, the documentation inside this "
                "Python installation"
            )
        _make_pydocs(DATA / "pydocs", first=is_main)
        return DATA / "pydocs"
    path = Path(name)
    places = [path] if path.is_absolute() or DATA in path.parents else [path, DATA / path]
    for folder in places:
        if (folder / MANIFEST).exists() or (folder / JOURNAL).exists():
            return folder
    prepared = sorted(p.parent.name for p in DATA.glob(f"*/{MANIFEST}"))
    raise DataError(
        "NO-DATASET",
        f"no prepared dataset at {' or '.join(map(str, places))}{nearest(name, prepared)}",
        do=f"outpace prepare {name}"
        if name in KNOWN
        else f"outpace prepare pretokenized --input '{name}' --output data/NAME"
        if _holds_tokens(path)
        else f"outpace prepare files --input {name} --output data/NAME"
        if path.exists()
        else f"outpace prepare files --input 'PATHS_OR_GLOBS' --output {places[-1]}",
    )


def _holds_tokens(path: Path) -> bool:
    """Whether it is a file, a pattern or a folder of tokens, as nanoGPT or llm.c train on."""
    files = path.iterdir() if path.is_dir() else [path]
    return any(file.suffix in SUFFIXES for file in files)


def open_named(name: str, *, make: bool = False, is_main: bool = True) -> Dataset:
    """`find_dataset`, opened and checked."""
    return open_dataset(find_dataset(name, make=make, is_main=is_main))


def open_mixture(text: str, *, make: bool = False, is_main: bool = True) -> Mixture:
    """All that `--dataset` names, opened and checked. A folder whose own name looks like several
    is taken for what it is."""
    names, weights = [text], None
    if not any((folder / MANIFEST).exists() for folder in (Path(text), DATA / text)):
        names, weights = parse_datasets(text)
    found = [open_named(name, make=make, is_main=is_main) for name in names]
    folders = [dataset.folder.resolve() for dataset in found]
    for folder, name in zip(folders, names, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(
                "DATASETS",
                f"--dataset {text}: {name} is named twice",
                do="name it once, with a larger weight",
            )
    return Mixture.of(found, weights)


def trained_on(folder: RunFolder) -> tuple[str, str]:
    """The dataset of a run, as `--dataset` would name it, and its fingerprint; where that is no
    path from here, the one from the folder that holds runs/. DataError when the run's plan does not
    say."""
    try:
        dataset = json.loads(folder.plan.read_text(encoding="utf-8"))["dataset"]
        beside = folder.root.resolve().parent.parent
        return _from_here(str(dataset["path"]), beside), str(dataset["fingerprint"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            "PLAN",
            f"{folder.plan} does not say what the run was trained on",
            do="name a --dataset, or check the run folder",
        ) from error


def _from_here(text: str, beside: Path) -> str:
    """A value of `--dataset`, each path that is none from here as one from the folder `beside`."""
    parts = [text] if Path(text).exists() or (beside / text).exists() else text.split(",")
    found = []
    for part in parts:
        name = match[1] if (match := WEIGHT.fullmatch(part)) else part
        elsewhere = not Path(name).exists() and (beside / name).exists()
        found.append(str(beside / part) if elsewhere else part)
    return ",".join(found)


def facts_of(mixture: Mixture, config: RunConfig) -> DatasetFacts:
    """What the plan needs to know of the data."""
    read = read_tokens(mixture, config.model.context) if config.data.bos_aligned else None
    return DatasetFacts(
        mixture.name,
        mixture.vocab_size,
        mixture.tokens_to_first_end(read),
        mixture.tokens("val"),
        unread(mixture, read) if read else 0.0,
        mixture.tokens("train") + mixture.tokens("val"),
    )


def _make_pydocs(folder: Path, *, first: bool) -> None:
    """Prepare it, or wait for the one that does: the first process of this host, or of another
    that shares the disk."""
    told = False
    while not (folder / MANIFEST).exists():
        if first:
            with contextlib.suppress(RunInUse):
                prepare(PydocsSource(), folder, PrepareOptions())
                return
            if not told:
                note(f"another process is preparing {folder}: waiting for it")
            told = True
        time.sleep(0.5)  # torchrun ends us should the first process fail
