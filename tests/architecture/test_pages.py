"""The pages say what the committed results say: nothing in them was written by hand."""

import shutil
import subprocess
import sys
from pathlib import Path

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
