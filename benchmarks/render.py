"""Write docs/benchmarks.md with its plots, and the figures and tables in docs/reliability.md and
README.md, from the JSON files in benchmarks/results/.

python benchmarks/render.py
"""

from pathlib import Path

from rendering import DOCS, ROOT, read
from rendering.around import evaluate, generation, loader, predictions, prepare, step_memory
from rendering.reliability import fault_table, reliability_figures
from rendering.speed import kernels, ladder, profile, race
from rendering.training import attention_memory, compare, optimizers

SECTIONS = (
    ("ladder-cuda", ladder),
    ("compare-cuda", race),
    ("kernels-cuda", kernels),
    ("profile-cuda", profile),
    ("ladder-cpu", ladder),
    ("ladder-cpu-amx", ladder),
    ("compare-cpu", race),
    ("compare-cpu-amx", race),
    ("compare-cpu-124M-amx", race),
    ("kernels-cpu", kernels),
    ("profile-cpu", profile),
    ("compare-nanogpt-cpu", compare),
    ("optimizers-cuda", optimizers),
    ("optimizers-cpu", optimizers),
    ("prepare-cpu", prepare),
    ("loader", loader),
    ("evaluate-cpu", evaluate),
    ("generation-cpu", generation),
    ("memory-cuda", step_memory),
    ("step-memory-cuda", step_memory),
    ("step-memory-cpu", step_memory),
    ("attention-memory-cuda", attention_memory),
    ("attention-memory-cpu", attention_memory),
)
"""Result file -> the function that makes its section, in the order of the page."""
HEAD = """# Benchmarks

Made by `python benchmarks/render.py` from the JSON files in `benchmarks/results/`; each records
machine, versions and settings. `outpace bench` writes yours to `results/`. Predictions are marked
as such and were not measured.
"""


def main() -> None:
    parts = [HEAD]
    for name, section in SECTIONS:
        if (result := read(name)) is not None:
            parts.append(section(result))
    if read("ladder-cuda") is None:
        parts.append(predictions())
    (DOCS / "benchmarks.md").write_text("\n".join(parts))
    between(DOCS / "reliability.md", "figures", reliability_figures())
    between(ROOT / "README.md", "faults", fault_table())


def between(path: Path, name: str, text: str) -> None:
    """Replace the text between the two comments called `name` in a page."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    assert rest, f"{path} has no place for {name}"
    path.write_text(before + begin + text + "\n" + end + after)


if __name__ == "__main__":
    main()
