"""What `make` installs, and when again."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_folder_that_was_moved_is_installed_again(tmp_path, monkeypatch):
    monkeypatch.delenv("MAKEFLAGS", raising=False)  # set by `make -s test`
    clone = tmp_path / "old place"
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    (clone / ".venv" / "bin" / "activate").touch()
    (clone / ".venv" / "run.installed").write_text(f"{clone.resolve()}\n")

    def would_do(folder: Path) -> str:
        make = ["make", "-n", "install"]
        return subprocess.run(make, cwd=folder, capture_output=True, text=True, check=True).stdout

    assert "Nothing to be done" in would_do(clone)
    moved = clone.rename(tmp_path / "new place")
    assert "-m venv .venv" in would_do(moved) and "--editable ." in would_do(moved)
