"""The table of text sources. A source yields the same documents in the same order each time it is
asked, which is what makes preparation restartable and its result reproducible.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from outpace.core.registry import Registry

SOURCES = Registry(
    "source",
    {
        "files": "outpace.data.sources.files:FilesSource",
        "pydocs": "outpace.data.sources.pydocs:PydocsSource",
    },
)


class Source(Protocol):
    """Where documents come from."""

    name: str

    def documents(self) -> Iterator[str]:
        """Yield each document's text, in an order that never changes."""
        ...

    def describe(self) -> dict[str, Any]:
        """What goes into the manifest: where the text came from and how it was normalised.
        Complete once `documents` has been read to its end."""
        ...
