"""Every fault of the catalogue has the tests that it should have, by their names alone."""

import ast
import functools
import re
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
CATALOGUE = tomllib.loads((FOLDER / "catalogue.toml").read_text(encoding="utf-8"))
NAMED = re.compile(r"test_([kdcrsnmphqu]\d+)_")


@functools.cache
def named_tests() -> dict[str, list[str]]:
    """Id -> the tests of this folder whose names begin with it."""
    found: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (match := NAMED.match(node.name)):
                found.setdefault(match[1].upper(), []).append(f"{path.name}::{node.name}")
    return found


def test_the_catalogue_has_126_faults_each_with_a_promise_and_a_tier():
    groups = {"K": 12, "D": 13, "C": 12, "R": 16, "S": 11, "N": 9, "M": 6, "P": 16, "H": 7,
              "Q": 11, "U": 13}  # fmt: skip
    assert list(CATALOGUE) == [f"{g}{i}" for g, n in groups.items() for i in range(1, n + 1)]
    for entry in CATALOGUE.values():
        assert entry.keys() == {"fault", "promise", "tier"}
        assert entry["tier"] in ("P0", "P1", "P2")
        assert all(len(entry[key].split()) >= 1 for key in entry)


def test_every_test_named_for_a_fault_names_one_that_exists():
    assert not {i: names for i, names in named_tests().items() if i not in CATALOGUE}


def test_every_p0_fault_has_a_test():
    p0 = [i for i, entry in CATALOGUE.items() if entry["tier"] == "P0"]
    missing = [i for i in p0 if i not in named_tests()]
    assert not missing, " ".join(missing)


def test_at_least_half_of_the_other_faults_have_a_test():
    others = [i for i, entry in CATALOGUE.items() if entry["tier"] != "P0"]
    missing = [i for i in others if i not in named_tests()]
    assert 2 * len(missing) <= len(others), " ".join(missing)
