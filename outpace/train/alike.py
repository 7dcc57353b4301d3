"""What several processes must have alike, compared before they start: else their sums are of
different things, or one waits for a sum that the others do not make.
"""

from collections.abc import Collection, Iterable
from typing import Any

from outpace.checkpoint.state import differences
from outpace.checkpoint.store import weights_sha256
from outpace.core.errors import UsageError
from outpace.core.files import sha256_json
from outpace.evals.task import Item, Task
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group

MOST_NAMED = 4


def check_alike(group: Group, told: dict[str, Any], measured: Collection[str] = ()) -> None:
    """UsageError, on all processes, where one has something else than the first. `measured` are
    settings that a host may have found out for itself."""
    first, *others = group.gather(told)
    for rank, other in enumerate(others, 1):
        if not (changed := differences(first, other)):
            continue
        do = "start all processes with the same command, data and environment"
        if {line.partition(":")[0] for line in changed} <= set(measured):
            do = (
                "run it again, as each host remembers what it measured, or choose "
                "--attention_backend, --cross_entropy and --micro_batch_size"
            )
        raise UsageError(
            "RANKS-DISAGREE",
            f"process {rank} has not what process 0 has: {', '.join(changed[:MOST_NAMED])}",
            do=do,
        )


def check_model(group: Group, model: GPT2 | None, told: dict[str, Any]) -> None:
    """The same for the scoring of a model: its weights too, of which a run that goes on may save
    newer ones between one process' look and another's."""
    if group.ranks.world_size > 1 and model is not None:
        told = told | {"weights": weights_sha256(dict(model.named_parameters()))[:16]}
    check_alike(group, told)


def question_hash(asked: Iterable[tuple[Task, str, list[Item]]]) -> str:
    """Of which questions are asked, and in what rendering."""
    told = [[task.name, protocol, [item.keys for item in items]] for task, protocol, items in asked]
    return sha256_json(told)[:16]
