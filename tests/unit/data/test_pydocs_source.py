"""The documentation inside Python: found without importing anything, the same each time."""

import sys
import sysconfig
from pathlib import Path

import pytest

from outpace.data.sources import pydocs
from outpace.data.sources.pydocs import PydocsSource

LONG = "A docstring that is long enough to say something about what it documents."


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small installation in place of the real one."""
    sources = {
        "alone.py": f'"""Module: {LONG}"""\nraise SystemExit("imported")\n',
        "pack/__init__.py": f'"""Package: {LONG}"""\n',
        "pack/inner.py": f'''
class Outer:
    """Class: {LONG}"""

    def method(self, a, b=1, *rest):
        """Method: {LONG}"""

    class Nested:
        async def waits(self):
            """Nested: {LONG}"""

def function(x):
    """Function: {LONG}

    Next.
        Indented more.
    """
''',
        "pack/copy.py": f'"""Package: {LONG}"""\n',
        "pack/short.py": '"""Too short."""\n',
        "pack/broken.py": f'"""Broken: {LONG}"""\ndef (:\n',
        "pack/bytes.py": b'"""Not UTF-8: \xff\xfe ' + LONG.encode() + b'"""\n',
        "pack/nul.py": f'"""Nul: {LONG}"""\0\n',
        "pack/deep.py": f'"""Deep: {LONG}"""\nx = ' + "(" * 5000 + ")" * 5000,
        "pack/latin.py": f'# -*- coding: latin-1 -*-\n"""Latin é: {LONG}"""\n'.encode("latin-1"),
        "pack/escape.py": f'"""Escape \\d: {LONG}"""\n',
        "pack/tests/test_it.py": f'"""Test: {LONG}"""\n',
        "pack/data.txt": f'"""Text: {LONG}"""\n',
    }
    for name, source in sources.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    monkeypatch.setattr(pydocs, "_roots", lambda: [tmp_path / "site"])
    return tmp_path / "site"


def modules(documents: list[str]) -> dict[str, str]:
    return {d.split("\n")[0]: d for d in documents if LONG in d}


def test_docstrings_of_modules_classes_and_functions_are_found_with_their_names(root):
    found = modules(list(PydocsSource().documents()))
    assert found["alone"] == f"alone\n\nModule: {LONG}\n"
    assert found["pack"] == f"pack\n\nPackage: {LONG}\n"
    assert found["pack.inner"] == (
        f"pack.inner\n\nclass Outer\n\nClass: {LONG}\n\nOuter.method(a, b)\n\nMethod: {LONG}\n\n"
        f"Outer.Nested.waits()\n\nNested: {LONG}\n\n"
        f"function(x)\n\nFunction: {LONG}\n\nNext.\n  Indented more.\n"
    )
    assert f"Latin é: {LONG}" in found["pack.latin"]
    assert f"Escape \\d: {LONG}" in found["pack.escape"]


def test_what_does_not_parse_is_a_copy_a_test_or_too_short_is_left_out(root, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "always")
    found = modules(list(PydocsSource().documents()))
    assert sorted(found) == ["alone", "pack", "pack.escape", "pack.inner", "pack.latin"]
    assert capfd.readouterr().err == ""  # of other people's sources, not even a warning


def test_no_module_is_imported(root, monkeypatch):
    monkeypatch.syspath_prepend(root)
    before = set(sys.modules)
    list(PydocsSource().documents())
    assert {m for m in set(sys.modules) - before if m.split(".")[0] in ("alone", "pack")} == set()


def test_two_instances_and_two_readings_give_the_same(root):
    first, second = PydocsSource(), PydocsSource()
    documents = list(first.documents())
    assert list(first.documents()) == documents == list(second.documents())
    assert first.describe() == second.describe()
    assert first.describe()["packages"] == ["alone.py", "pack"]


def test_a_package_gives_no_more_than_its_share(root, monkeypatch):
    many = "\n".join(f'def f{n}():\n    """{n}: {LONG}"""' for n in range(100))
    (root / "pack" / "many.py").write_text(many)
    monkeypatch.setattr(pydocs, "PACKAGE_LIMIT", 2000)
    found = modules(list(PydocsSource().documents()))
    assert 1500 < sum(len(found[m]) for m in found if m.startswith("pack")) < 3500
    assert "alone" in found


def test_the_topics_of_the_language_reference_come_first(root):
    documents = list(PydocsSource().documents())
    assert LONG not in documents[0]
    assert any('The "for" statement' in d for d in documents[:120])


def test_this_installation_documents_python():
    """The real standard library, in one module of it, and the real places."""
    assert Path(sysconfig.get_path("stdlib")) in pydocs._roots()
    folder = Path(sysconfig.get_path("stdlib")) / "json"
    files = list(pydocs._python_files(folder))
    assert files == sorted(folder.glob("*.py")) and files[0].name == "__init__.py"
    docstrings = dict(pydocs._docstrings(files[0]))
    assert "Serialize ``obj`` to a JSON formatted ``str``" in docstrings["dumps(obj)"]
