"""The folder that a preparation writes to: who may, what is in it already, what a signal or a
fault leaves behind.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import Timeout

from outpace.core import locks
from outpace.core.errors import DataError, OutpaceError, RunInUse, Stopped, StorageError, UsageError
from outpace.core.log import warn
from outpace.core.runfolder import RunFolder
from outpace.core.signals import SAME_STOP_S, leave_at_once, stop_signals
from outpace.data.journal import GROWING, Growing, Journal
from outpace.data.shard_file import DELETE, SPLITS, read_json
from outpace.data.shard_part import restore
from outpace.data.shards import JOURNAL, MANIFEST

LOCK, REMOVED = ".lock", "removed.jsonl"


class Signalled(BaseException):
    """On its way to `stop_on_signals`. No Exception, which others catch: Thread.start does, and
    breaks the thread that it has just started."""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Make the folder and keep others from preparing into it meanwhile. A fault before the first
    shard leaves nothing behind. A finished dataset may lie where nobody can write."""
    if RunFolder(output).config.exists():
        raise UsageError("OUTPUT", f"{output} holds a run", do="choose another --output")
    made: list[Path] = []
    lock = None
    try:
        made = [p for p in (output, *output.parents) if not p.exists()]
        output.mkdir(parents=True, exist_ok=True)
        lock = locks.take(output / LOCK, 0)
    except Timeout as error:
        raise RunInUse(
            "OUTPUT-IN-USE", f"another process prepares {output}", do="wait for it"
        ) from error
    except OSError as error:
        if not (output / MANIFEST).exists():
            raise StorageError(
                "OUTPUT",
                f"cannot write to {output}: {error.strerror or error}",
                do="choose another --output",
            ) from error
    untouched = not [path for path in output.iterdir() if path.name != LOCK]
    try:
        yield
    except OutpaceError:
        if untouched:
            _leave_nothing(output, made)
        raise
    finally:
        if lock is not None:
            lock.release()


def _leave_nothing(output: Path, made: list[Path]) -> None:
    """Take away what was begun, unless a shard is finished."""
    if any(output.glob("*.bin")):
        return
    with contextlib.suppress(OSError):
        for name in (JOURNAL, *GROWING.values()):
            (output / name).unlink(missing_ok=True)
        if made:
            (output / LOCK).unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()


@contextmanager
def stop_on_signals(output: Path) -> Iterator[None]:
    """Turn the first signal that asks to stop into `Stopped`; a second one ends the process at
    once. What is half written then has another name, and the next run writes it again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise Signalled(signal.Signals(number).name)
        if time.monotonic() - first > SAME_STOP_S:
            leave_at_once(number)

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    except Signalled as name:
        raise Stopped(
            "STOPPED",
            f"{name} received",
            kept=f"the finished shards in {output}",
            do="run the same command again to go on",
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_journal(
    output: Path, spec: str, settings: dict[str, Any], stamps: str, earlier: str | None = None
) -> Journal:
    """What was done already, under this `spec` or an `earlier` one that may go on as it; DataError
    when the folder holds something else, which is then left as it is."""
    path = output / JOURNAL
    if not path.exists():
        if foreign := sorted(output.glob("*.bin")):
            raise DataError(
                "OTHER-DATASET",
                f"{output} holds shards of something else ({foreign[0].name})",
                do="choose another --output",
            )
        journal = Journal(spec, settings, stamps)
    else:
        content = read_json(path)
        if isinstance(content, dict) and content.get("spec") not in (None, spec, earlier):
            raise other_dataset(output, difference(content.get("settings"), settings))
        journal = Journal.read(output)
        journal.spec, journal.settings = spec, settings
        if fault := _fault(output, journal):
            warn(f"{fault}; writing everything again")
            journal = begin_again(output, journal, journal.decision)
    for rubbish in (*output.glob(f".{JOURNAL}.tmp-*"), *output.glob(f".{MANIFEST}.tmp-*")):
        rubbish.unlink()
    return journal


def other_dataset(output: Path, which: str) -> DataError:
    """For a folder that holds another one than is asked for."""
    unfinished = "delete that folder, with all that begins with a dot in it"
    return DataError(
        "OTHER-DATASET",
        f"{output} holds a dataset {which}",
        do=f"choose another --output, or {DELETE if (output / MANIFEST).exists() else unfinished}",
    )


def difference(known: Any, wanted: dict[str, Any]) -> str:
    """In what a dataset's settings are not those that are wanted; where they are equal, the text
    is another one."""
    known = known if isinstance(known, dict) else {}
    if known.get("kind") != wanted["kind"]:
        return f"from {known.get('kind', 'another source')}, not {wanted['kind']}"
    found = []
    for name in sorted(known.keys() | wanted.keys()):
        there, here = known.get(name), wanted.get(name)
        if there == here:
            continue
        plain = not isinstance(there, (list, dict)) and not isinstance(here, (list, dict))
        found.append(f"{name} {there}, not {here}" if plain else f"other {name}")
    return f"prepared with {'; '.join(found)}" if found else "prepared from other text"


def begin_again(output: Path, journal: Journal, decision: dict[str, Any] | None) -> Journal:
    """A journal of nothing done. The shards are taken away: there might be fewer this time."""
    fresh = Journal(journal.spec, journal.settings, journal.stamps, decision=decision)
    fresh.write(output)
    for shard in journal.shards:
        for name in (shard.file, shard.lengths):
            (output / name).unlink(missing_ok=True)
    return fresh


def _fault(output: Path, journal: Journal) -> str | None:
    """Bring the half-written files back to where the journal is; what is wrong with them."""
    for shard in journal.shards:
        if damage := shard.fault(output):
            return damage.what
    for split, number in journal.numbers().items():
        if not restore(output, split, number, journal.parts[split]):
            return f"the half-filled shard of {split} in {output} is damaged"
    listed = output / GROWING["removed"]
    if (output / REMOVED).exists() and not listed.exists():
        os.replace(output / REMOVED, listed)
    for name, size in journal.sizes.items():
        if not Growing(output, name, size).whole():
            return f"{output / GROWING[name]} is damaged"
    for stale in (p for s in SPLITS for p in output.glob(f"{s}_??????.???.tmp")):
        if not journal.parts[stale.name.split("_")[0]].documents:
            stale.unlink()
    return None
