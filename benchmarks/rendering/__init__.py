"""Helpers for all sections: reading results, the machine in words, plots, tables."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
OURS, THEIRS, GREY = "#17698a", "#c05a1f", "#a5a096"
Result = dict[str, Any]
plt.rcParams |= {"svg.hashsalt": "outpace", "axes.spines.top": False, "axes.spines.right": False}


def read(name: str) -> Result | None:
    """The result file `name`, with its name added; None if it does not exist."""
    path = RESULTS / f"{name}.json"
    return {"name": name, **json.loads(path.read_text())} if path.exists() else None


def where(result: Result) -> str:
    """Machine, versions and date in words."""
    machine, versions = result["machine"], result["versions"]
    return (
        f"{machine['device_name']}, {machine['cores']} cores, torch {versions['torch']}, "
        f"Python {versions['python']}, {result['date']}"
    )


def origin(result: Result, more: str = "") -> str:
    """Machine, versions, date and command of a result: the end of its section."""
    return f"{where(result)}{more}. `{result['command']}`"


def section(title: str, *blocks: str) -> str:
    """A section of the page; empty blocks are left out."""
    return "\n\n".join([f"## {title}", *filter(None, blocks)]) + "\n"


def spread(values: Result, form: str = ",.0f") -> str:
    """Median with the 20th and 80th percentile."""
    return f"{values['median']:{form}} ({values['p20']:{form}}, {values['p80']:{form}})"


def machine_of(result: Result) -> str:
    """`cpu` or `cuda`, as in the name of the result."""
    return str(result["machine"]["device"])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def save(figure: Any, name: str) -> None:
    """Write a plot to docs/img."""
    figure.tight_layout()
    figure.savefig(DOCS / "img" / name, metadata={"Date": None})
    plt.close(figure)
