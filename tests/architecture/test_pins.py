"""The pins of constraints.txt allow the package and every extra of it to be installed."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if found := re.match(r"([\w.-]+)==(\S+)", line):
            yield canonicalize_name(found[1]), found[2]


def test_every_package_asked_for_is_pinned_once_to_a_version_that_is_allowed():
    pinned = dict(pins())
    assert len(pinned) == len(list(pins()))
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(t for extra in extras.values() for t in extra)]:
        asked = Requirement(text)
        if asked.name != "outpace":
            assert pinned[canonicalize_name(asked.name)] in asked.specifier, text


@pytest.mark.net
@pytest.mark.exhaustive
def test_all_extras_can_be_installed_together_with_the_pins():
    extras = ",".join(PROJECT["optional-dependencies"])
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pytest.skip("needs pip")
    pip += ["install", "--dry-run", "--constraint", "constraints.txt"]
    done = subprocess.run([*pip, f".[{extras}]"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
