"""Text to train on, and other text to validate on."""

from collections.abc import Sequence
from typing import Any

from outpace.core.errors import UsageError
from outpace.data.sources import Chunk, Source

BY_INPUT = "input"
"""How such a source is split, in a manifest's options."""


class WithValidation:
    """`train`, and behind it `val`, of which every document is validation. One that is in both is a
    copy, and stays with `train`."""

    def __init__(self, train: Source, val: Source) -> None:
        self.train, self.val, self.name = train, val, train.name
        self.validation_from = 0
        """The first chunk of validation, once there are `chunks`."""

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
        """Let both clean up, if they want to."""
        for source in (self.train, self.val):
            if hasattr(source, "finished"):
                source.finished()
