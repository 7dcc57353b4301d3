"""What a number may be, said on the field itself: `lr: Annotated[float, Range(0, 100)]`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_type_hints

from outpace.core.errors import UsageError


@dataclass(frozen=True)
class Range:
    """The values a number may take, both ends included unless `above` leaves out the least."""

    least: float
    most: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is a finite number inside."""
        enough = value > self.least if self.above else value >= self.least
        return enough and value <= self.most and math.isfinite(value)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {_short(self.least)} to {_short(self.most)}"


def ranges_of(schema: Any) -> dict[str, Range]:
    """The range of each field that has one, of a dataclass and of those inside it."""
    found: dict[str, Range] = {}
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found |= ranges_of(hint)
        for allowed in getattr(hint, "__metadata__", ()):
            if isinstance(allowed, Range):
                found[name] = allowed
    return found


def range_faults(options: Any) -> list[str]:
    """A sentence for each number outside its range. `auto` and None are never outside."""
    faults = []
    for name, value in vars(options).items():
        if dataclasses.is_dataclass(value):
            faults += range_faults(value)
        allowed = ranges_of(type(options)).get(name)
        for number in value if isinstance(value, tuple) else (value,):
            if allowed and number not in (None, "auto") and not allowed.holds(number):
                faults.append(f"--{name} {number} is not {allowed}")
    return faults


def check_ranges(options: Any, prog: str) -> None:
    """Raise one UsageError that names every number of `options` outside its range."""
    if faults := range_faults(options):
        raise UsageError("BAD-VALUE", "; ".join(faults), do=f"see `{prog} --help`")


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
