"""The pages say what the committed results say."""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE = ("docs/benchmarks.md", "docs/reliability.md", "README.md")


def test_rendering_the_results_again_changes_no_page(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("docs", "benchmarks", "tests/faults"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, "benchmarks/render.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in MADE:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name}: {command}"


def test_every_picture_of_a_page_is_there_and_every_picture_is_on_a_page():
    pages = "".join(p.read_text() for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    pictures = {p.name for p in (ROOT / "docs" / "img").iterdir()}
    assert {name for name in pictures if f"img/{name})" in pages} == pictures
    assert all(
        (ROOT / "docs" / "img" / n.split(")")[0]).is_file() for n in pages.split("](img/")[1:]
    )


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def ahead(name: str, peer: str) -> float:
    """Our speed over a peer's, the least over the numbers of threads."""
    return min(r["rows"][peer]["ours_over_theirs"]["median"] for r in result(name)["runs"])


def figures() -> Iterator[tuple[str, str]]:
    """(page, what it says) for the figures that are written by hand."""
    yield "README.md", f"in bf16, {ahead('compare-cpu', 'nanogpt'):.1f} times the tokens"
    yield "README.md", f"{ahead('compare-cpu', 'transformers'):.1f} times those of transformers"
    amx = (ahead("compare-cpu-amx", peer) for peer in ("nanogpt", "transformers"))
    yield "README.md", "{:.1f} and {:.1f} times on a CPU with AMX".format(*amx)

    in_c = ahead("compare-cpu-124M-amx", "llmc (C)")
    yield "README.md", f"{in_c:.1f} times those of llm.c's C program"

    small, large = races = result("prepare-cpu")["races"].values()
    fast, slow = ([r["times_nanogpt"][e] for r in races] for e in ("fastokens", "tiktoken"))
    yield "README.md", f"{min(fast):.0f} to {max(fast):.0f} times as fast as nanoGPT's script"
    yield "README.md", f"{min(slow):.1f} to {max(slow):.1f} times without it"
    for key, cost in (
        ("cpu_seconds", "{:.1f} ms per MB of text, from parquet to hashed shards, and {:.1f} s"),
        ("seconds", "{:.1f} ms per MB, and {:.1f} s to start"),
    ):
        (x, a), (y, b) = ((r["text_bytes"] / 1e6, of_fastokens(r, key)) for r in (small, large))
        slope = (b - a) / (y - x)
        yield "docs/data-format.md", cost.format(1e3 * slope, a - slope * x)
    peaks = (max(run["peak_bytes"] for run in r["runs"]["fastokens"]) / 1e6 for r in races)
    yield "docs/data-format.md", "{:.0f} and {:.0f} MB".format(*peaks)

    scored = result("evaluate-cpu")
    times = [scored["against"][peer]["times_faster"] for peer in ("build-nanogpt", "lm-eval")]
    of = f"{scored['questions']} questions"
    said = "{:.1f} times as fast as build-nanogpt's script and {:.1f} times as fast as lm-eval"
    yield "README.md", f"{said.format(*times)} (timed on {of})"
    said = "{:.1f} times build-nanogpt and {:.1f} times lm-eval"
    yield "docs/evaluation.md", f"{said.format(*times)} on {of}"

    yield "README.md", f"{result('reliability-kills')['kills']} `kill -9` lost no checkpoint"
    yield "README.md", f"no run is lost: {len(result('faults')['faults'])} faults"
    less = result("optimizers-cpu")["sooner"]["muon"]
    fewer = f"{less['tokens']:.1f} times fewer tokens and in {less['time']:.1f} times less time"
    yield "README.md", fewer


def of_fastokens(race: dict[str, Any], key: str) -> float:
    return statistics.median(run[key] for run in race["runs"]["fastokens"])


@pytest.mark.parametrize(("page", "said"), list(figures()))
def test_the_figures_written_by_hand_are_those_of_the_results(page, said):
    assert said in " ".join((ROOT / page).read_text().split())
