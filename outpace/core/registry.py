"""Plug-in tables: from a name to its module, which is loaded only when asked for."""

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from outpace.core.errors import UsageError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the closest known name, or an empty string."""
    import difflib  # late: slow to import, and help pages do not need it

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that begin with `name`, or else the closest to it."""
    import difflib

    begun = sorted((k for k in known if name and k.startswith(name)), key=len)
    return begun[:3] or difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)


class Registry:
    """A table `name -> "module:attribute"`. docs/tour.md says what else a plug-in needs."""

    def __init__(self, kind: str, table: dict[str, str]) -> None:
        self.kind = kind
        self._table = table

    def names(self) -> list[str]:
        return list(self._table)

    def check(self, name: str, *more: str) -> None:
        """Raise UsageError, naming the nearest entry, if `name` is neither in the table nor in
        `more`."""
        known = [*self._table, *more]
        if name not in known:
            raise UsageError(
                "UNKNOWN-" + self.kind.upper().replace(" ", "-"),
                f"no {self.kind} {name!r}{nearest(name, known)}",
                do=f"choose one of {', '.join(known)}",
            )

    def first_line(self, name: str) -> str:
        """The first line of the docstring of entry `name`'s module, read without importing it."""
        spec = importlib.util.find_spec(self._table[name].partition(":")[0])
        assert spec is not None and spec.origin is not None
        with Path(spec.origin).open(encoding="utf-8") as f:
            return f.readline().strip().strip('"')

    def help_lines(self, width: int) -> str:
        """One line per entry: its name in `width` columns, and the part after the colon of the
        first line of its module's docstring."""
        about = {name: self.first_line(name).partition(": ")[2] for name in self._table}
        return "".join(f"  {name:<{width}}{text.rstrip('.')}\n" for name, text in about.items())

    def dispatch(self, argv: list[str], usage: str, width: int) -> int:
        """Run the subcommand named first in `argv`, or list all of them."""
        if not argv or argv[0] in ("-h", "--help"):
            print(f"usage: {usage}\n\n{self.help_lines(width)}", end="")
            return 0
        code: int = self.load(argv[0]).run(argv[1:])
        return code

    def load(self, name: str) -> Any:
        """Import and return the entry `name`."""
        self.check(name)
        module, _, attribute = self._table[name].partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
