"""Checks that all processes have the same settings and data before they start. Otherwise their sums
would be wrong, or one would wait for a sum in which the others do not take part.
"""

from collections.abc import Collection, Iterable
from typing import Any

from outpace.checkpoint.store import weights_sha256
from outpace.core.errors import UsageError
from outpace.core.files import sha256_json
from outpace.evals.task import Item, Task
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group
from outpace.train.environment import software
from outpace.train.plan import differences

MOST_NAMED = 4


def check_alike(group: Group, settings: dict[str, Any], measured: Collection[str] = ()) -> None:
    """UsageError, in all processes, if `settings` or the software of one differ from the first's.
    `measured` are settings that each host may have measured for itself."""
    first, *others = group.all_gather(settings | software())
    for rank, other in enumerate(others, 1):
        if not (changed := differences(first, other)):
            continue
        do = "start all processes with the same command, data, software and environment"
        if {line.partition(":")[0] for line in changed} <= set(measured):
            do = (
                "run it again, since each host keeps its measurements, or choose "
                "--attention_backend, --cross_entropy and --micro_batch_size"
            )
        raise UsageError(
            "RANKS-DISAGREE",
            f"process {rank} differs from process 0: {', '.join(changed[:MOST_NAMED])}",
            do=do,
        )


def check_model(group: Group, model: GPT2 | None, settings: dict[str, Any]) -> None:
    """The same before scoring a model, with its weights: a run in progress may save newer ones
    after one process has loaded them and before another does."""
    if group.ranks.world_size > 1 and model is not None:
        settings = settings | {"weights": weights_sha256(dict(model.named_parameters()))[:16]}
    check_alike(group, settings)


def question_hash(asked: Iterable[tuple[Task, str, list[Item]]]) -> str:
    """A hash of the questions and their rendering."""
    rendered = [
        [task.name, protocol, [item.keys for item in items]] for task, protocol, items in asked
    ]
    return sha256_json(rendered)[:16]
