"""The output folder of a preparation: locking it, continuing earlier work in it, and cleaning up
after a signal or an error.
"""

import contextlib
import math
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


class Signalled(KeyboardInterrupt):
    """Raised by a signal handler, caught in `stop_on_signals`. Not an Exception, which would be
    caught on the way: Thread.start does, which breaks the thread just started.
    """


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Make the folder and keep other processes from preparing into it. An error before the first
    shard leaves nothing behind. A finished dataset may lie in a folder that cannot be written."""
    if RunFolder(output).config.exists():
        raise UsageError("OUTPUT", f"{output} contains a run", do="choose another --output")
    made: list[Path] = []
    lock = None
    try:
        made = [p for p in (output, *output.parents) if not p.exists()]
        output.mkdir(parents=True, exist_ok=True)
        lock = locks.take(output / LOCK, 0)
    except Timeout as error:
        raise RunInUse(
            "OUTPUT-IN-USE", f"another process is preparing {output}", do="wait for it"
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
    """Delete what was begun, unless a shard is finished."""
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
    """Turn the first stop signal into `Stopped`; a second one ends the process at once.
    Half-written files then have temporary names, and the next run writes them again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None
    name = ""

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal first, name
        if first is None:
            first, name = time.monotonic(), signal.Signals(number).name
            raise Signalled(name)
        if time.monotonic() - first > SAME_STOP_S:
            leave_at_once(number)

    before: dict[int, Any] = {}
    try:
        for handled in stop_signals():
            before[handled] = signal.signal(handled, stop)
        yield
    except BaseException:
        if not name:
            raise
        # Whatever else it is by now: raised inside a library's lock, say, it comes out as an error.
        raise Stopped(
            "STOPPED",
            f"{name} received",
            kept=f"what is finished in {output}",
            do="run the same command again to continue",
        ) from None
    finally:
        first = first or math.inf  # one that comes now is too late: the work is done
        for number, handler in before.items():
            signal.signal(number, handler)


def open_journal(
    output: Path, spec: str, settings: dict[str, Any], stamps: str, earlier: str | None = None
) -> Journal:
    """The journal of the work done so far, under this `spec` or an `earlier` one that may continue
    as it. DataError if the folder contains something else, which stays untouched."""
    path = output / JOURNAL
    if not path.exists():
        if foreign := sorted(output.glob("*.bin")):
            raise DataError(
                "OTHER-DATASET",
                f"{output} contains shards of another dataset ({foreign[0].name})",
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
            warn(f"{fault}; starting again from the beginning")
            journal = begin_again(output, journal, journal.decision)
    for rubbish in (*output.glob(f".{JOURNAL}.tmp-*"), *output.glob(f".{MANIFEST}.tmp-*")):
        rubbish.unlink()
    return journal


def other_dataset(output: Path, which: str) -> DataError:
    """The error for a folder with a dataset other than the one asked for."""
    unfinished = "delete that folder, hidden files included"
    return DataError(
        "OTHER-DATASET",
        f"{output} contains a dataset {which}",
        do=f"choose another --output, or {DELETE if (output / MANIFEST).exists() else unfinished}",
    )


def difference(known: Any, wanted: dict[str, Any]) -> str:
    """How a dataset's settings differ from the wanted ones; if they are equal, its text does."""
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
    """An empty journal. The shards are deleted, because there might be fewer this time."""
    fresh = Journal(journal.spec, journal.settings, journal.stamps, decision=decision)
    fresh.write(output)
    for shard in journal.shards:
        for name in (shard.file, shard.lengths):
            (output / name).unlink(missing_ok=True)
    return fresh


def _fault(output: Path, journal: Journal) -> str | None:
    """Bring the half-written files back to the journal's state; return what is wrong, or None."""
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
