"""A source with separate text for validation."""

from collections.abc import Sequence
from typing import Any

from outpace.core.errors import UsageError
from outpace.data.sources import Chunk, Source

BY_INPUT = "input"
"""The value of `split` in a manifest's options for such a source."""


class WithValidation:
    """All documents of `train`, then those of `val`, which are all validation. A document in both
    is a copy, and stays in `train`."""

    def __init__(self, train: Source, val: Source) -> None:
        self.train, self.val, self.name = train, val, train.name
        self.validation_from = 0
        """Number of the first validation chunk; set by `chunks`."""

    def chunks(self) -> Sequence[Chunk]:
        train, val = self.train.chunks(), self.val.chunks()
        if both := {c.name for c in train} & {c.name for c in val}:
            raise UsageError(
                "BAD-VALUE",
                f"{min(both)} is in --input and in --val_input",
                do="leave it out of one",
            )
        self.validation_from = len(train)
        return [*train, *val]

    def describe(self) -> dict[str, Any]:
        val = {k: v for k, v in self.val.describe().items() if k != "normalisation"}
        return {**self.train.describe(), "validation": val}

    def finished(self) -> None:
        """Let both sources clean up, if they have to."""
        for source in (self.train, self.val):
            if hasattr(source, "finished"):
                source.finished()
