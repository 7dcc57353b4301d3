"""Multiple choice: the continuation with the highest log-likelihood wins, in total or per token,
character or byte. Of equals the first wins, as with `argmax`.
"""

from collections.abc import Callable, Iterable, Sequence

from outpace.evals.packing import Request
from outpace.evals.scoring import Scores
from outpace.evals.task import Item, Record, share

Lengths = Callable[[Item, Sequence[Request]], list[int]]


def tokens(item: Item, requests: Sequence[Request]) -> list[int]:
    return [len(c) for r in requests for c in r.continuations]


def characters(item: Item, requests: Sequence[Request]) -> list[int]:
    return [len(text) for text in item.choices]


def utf8_bytes(item: Item, requests: Sequence[Request]) -> list[int]:
    return [len(text.encode("utf-8", "surrogatepass")) for text in item.choices]


NORMALISERS: dict[str, dict[str, Lengths]] = {
    "completion": {"norm": tokens},
    "harness": {"norm": characters, "bytes": utf8_bytes},
}
"""What each protocol's `acc_norm` (and `acc_bytes`) divides by."""
METRICS = {
    protocol: ("acc", *(f"acc_{name}" for name in by)) for protocol, by in NORMALISERS.items()
}


def tally(
    items: Sequence[Item], requests: Sequence[Request], scores: Scores, protocol: str
) -> tuple[Record, list[Record]]:
    """`accuracies` with the protocol's normalisers."""
    return accuracies(items, requests, scores, NORMALISERS[protocol])


def accuracies(
    items: Sequence[Item], requests: Sequence[Request], scores: Scores, by: dict[str, Lengths]
) -> tuple[Record, list[Record]]:
    """Accuracies over all items and over each of their groups; and a record of each item: its keys,
    `label`, `pred`, a `pred_NAME` for each normaliser, and `log_likelihoods`."""
    examples, at = [], 0
    for item in items:
        n = len(item.contexts)
        mine, nats = requests[at : at + n], scores.log_likelihoods[at : at + n]
        at += n
        sums = [value for values in nats for value in values]
        preds = {
            f"pred_{name}": _argmax(map(_per, sums, lengths(item, mine)))
            for name, lengths in by.items()
        }
        answer = {"label": item.label, "pred": _argmax(sums), **preds, "log_likelihoods": sums}
        examples.append({**item.keys, **answer})
    metrics = {"acc": "pred", **{f"acc_{name}": f"pred_{name}" for name in by}}
    record = {"questions": len(items), **_shares(examples, metrics)}
    parts: dict[str, dict[str, list[Record]]] = {}
    for item, example in zip(items, examples, strict=True):
        for kind, name in item.groups.items():
            parts.setdefault(kind, {}).setdefault(name, []).append(example)
    if parts:
        record["by"] = {
            kind: {
                name: {"questions": len(some), **_shares(some, metrics)}
                for name, some in sorted(named.items())
            }
            for kind, named in parts.items()
        }
    return record, examples


def _shares(examples: Sequence[Record], metrics: dict[str, str]) -> Record:
    out: Record = {}
    for metric, prediction in metrics.items():
        out |= share([e[prediction] == e["label"] for e in examples], metric)
    return out


def _per(nats: float, length: int) -> float:
    """Per unit of length; an empty text never wins, as in lm-eval, where it is -inf."""
    return nats / length if length else float("-inf")


def _argmax(values: Iterable[float]) -> int:
    listed = list(values)
    return max(range(len(listed)), key=listed.__getitem__)
