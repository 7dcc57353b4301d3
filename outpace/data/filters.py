"""`--filter`: conditions on a document's length, or on columns beside its text."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from outpace.core.errors import DataError, UsageError

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
    ">": operator.gt, "<": operator.lt,
}  # fmt: skip
LENGTHS: dict[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
}
"""Measures of a document's text; every other name is a column of the source."""


@dataclass(frozen=True)
class Filter:
    """A condition on the value `name`: a document is kept if it holds."""

    name: str
    sign: str
    value: float | str

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.value}"

    def keeps(self, value: Any, place: str) -> bool:
        """Whether a document is kept; one without a value (null) is not."""
        wanted = self.value
        if value is None:
            return False
        try:
            if isinstance(wanted, float):
                value = float(value)
            elif isinstance(value, bool):
                value, wanted = str(value).lower(), wanted.lower()
                if wanted not in ("true", "false"):
                    raise ValueError
            elif not isinstance(value, str):
                raise ValueError
            return bool(OPERATORS[self.sign](value, wanted))
        except (TypeError, ValueError) as error:
            raise DataError(
                "BAD-INPUT",
                f"{place}: {self.name} is {value!r}, which cannot be compared with {self.value}",
                do="name another column in --filter",
            ) from error


def parse_filter(text: str) -> Filter:
    """Parse `NAME>=VALUE` and the like. UsageError if it is not a condition."""
    found = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*([^=\s].*?)\s*", text)
    if not found:
        raise UsageError(
            "BAD-VALUE",
            f"--filter {text!r} is not a condition",
            do="write it like 'characters>=200' or 'language_score>=0.9'",
        )
    name, sign, value = found.groups()
    try:
        return Filter(name, sign, float(value))
    except ValueError:
        if sign not in ("==", "!=") or name in LENGTHS:
            raise UsageError(
                "BAD-VALUE", f"--filter {text!r}: {value!r} is not a number", do="give a number"
            ) from None
        return Filter(name, sign, value.strip("'\""))


def columns_of(filters: Sequence[Filter]) -> list[str]:
    """The columns that the filters need from a source."""
    return list(dict.fromkeys(f.name for f in filters if f.name not in LENGTHS))
