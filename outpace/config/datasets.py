"""The value of `--dataset`: one dataset, or several with their weights."""

import re
from fractions import Fraction

from outpace.core.errors import UsageError

WEIGHT = re.compile(r"(.+):([0-9]*\.?[0-9]+)")


def parse_datasets(text: str) -> tuple[list[str], list[Fraction] | None]:
    """`a:0.7,b:0.3` -> names and weights; `a,b` -> names alone. UsageError for names without a
    weight beside others that have one, a weight of nothing, or an empty name."""
    names, weights = [], []
    for part in text.split(","):
        found = WEIGHT.fullmatch(part.strip())
        names.append(found[1].strip() if found else part.strip())
        weights.append(Fraction(found[2]) if found else None)
    if not all(names):
        raise _fault(text, "it has an empty name")
    given = [weight for weight in weights if weight is not None]
    if not given:
        return names, None
    if len(given) < len(names):
        raise _fault(text, f"{names[weights.index(None)]} has no weight and others have one")
    if not all(given):
        raise _fault(text, "a weight is 0")
    return names, given


def _fault(text: str, what: str) -> UsageError:
    return UsageError(
        "DATASETS", f"--dataset {text}: {what}", do="write NAME,NAME or NAME:0.7,NAME:0.3"
    )
