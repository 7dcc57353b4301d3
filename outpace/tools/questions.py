"""The questions of each task: found in their file and rendered by protocol."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from outpace.core.errors import UsageError
from outpace.core.registry import nearest
from outpace.evals.task import Item, Task, subset
from outpace.evals.tasks import TASKS, hellaswag, rows
from outpace.interop import hub

HUB = "hub"


def questions(
    names: Sequence[str],
    protocols: Sequence[str],
    *,
    hellaswag_path: Path,
    task_data: str,
    parts: Sequence[str] = (),
    limit: int | None = None,
) -> Iterator[tuple[Task, str, list[Item]]]:
    """(task, protocol, items) for HellaSwag in each of `protocols`, for other tasks in their only
    protocol. `parts` selects parts of HellaSwag; `limit` takes that many items, spread evenly over
    the task."""
    for name in names:
        task: Task = TASKS.load(name)
        if name == "hellaswag":
            chosen = subset(hellaswag.only(hellaswag.load(hellaswag_path), parts), limit)
            for protocol in protocols:
                yield task, protocol, [hellaswag.render(q, protocol) for q in chosen]
            continue
        protocol = task.protocols[0]
        yield task, protocol, subset(rows.items(task, protocol, _rows_of(task, task_data)), limit)


def check_protocols(names: str) -> list[str]:
    """Protocols of HellaSwag, comma-separated, or `both`; UsageError for an unknown one."""
    if names == "both":
        return list(hellaswag.PROTOCOLS)
    protocols = [name.strip() for name in names.split(",")]
    for protocol in protocols:
        if protocol not in hellaswag.PROTOCOLS:
            raise UsageError(
                "UNKNOWN-PROTOCOL",
                f"there is no protocol {protocol!r}{nearest(protocol, hellaswag.PROTOCOLS)}",
                do=f"choose from {', '.join(hellaswag.PROTOCOLS)}, both",
            )
    return list(dict.fromkeys(protocols))


def _rows_of(task: Task, place: str) -> Path:
    if place != HUB:
        return rows.find(task, Path(place))
    dataset, file = task.hub
    folder = hub.fetch(dataset, (file,), kind="dataset", revision=rows.HUB_REVISION)
    return folder / Path(file).name
