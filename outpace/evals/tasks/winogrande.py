"""WinoGrande (Sakaguchi et al. 2019): which of two names fits the gap? 1,267 validation questions
of the set `winogrande_xl`.

Each name is put in the gap, and what follows the gap is scored, as in lm-eval,
tasks/winogrande/preprocess_winogrande.py. Both continuations are the same text, so nothing is
normalised: `acc` is the only score.
"""

from collections.abc import Sequence

from outpace.core.files import JsonObject
from outpace.evals import choice
from outpace.evals.packing import Request
from outpace.evals.scoring import Scores
from outpace.evals.task import Item, Record, Task


def _item(number: int, row: JsonObject, protocol: str) -> Item:
    sentence, options = str(row["sentence"]), [str(row["option1"]), str(row["option2"])]
    gap, label = sentence.index("_"), ("1", "2").index(str(row["answer"]))
    rest = f" {sentence[gap + 1 :].strip()}"
    return Item([sentence[:gap] + o for o in options], [rest, rest], label, keys={"row": number})


def _tally(
    items: Sequence[Item], requests: Sequence[Request], scores: Scores, protocol: str
) -> tuple[Record, list[Record]]:
    return choice.accuracies(items, requests, scores, {})


TASK = Task(
    "winogrande",
    _item,
    _tally,
    wheel="hf_datasets/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow",
    hub=("allenai/winogrande", "winogrande_xl/validation/0000.parquet"),
)
