"""The English documentation inside any Python installation: the language reference
(`pydoc_data.topics`) and the docstrings of the standard library and of installed packages. Real
text, offline, in a minute or two. Sources are only parsed; no module is imported.

Each module is one document. Repeated docstrings are left out, and a top-level package contributes
at most `PACKAGE_LIMIT` characters, so that no single package dominates the corpus.
"""

import ast
import hashlib
import inspect
import multiprocessing
import os
import re
import signal
import sys
import sysconfig
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from typing import Any

from outpace.core.limits import usable_cores
from outpace.core.signals import stop_signals
from outpace.data.sources import WholeSource

PACKAGE_LIMIT = 3_000_000
AT_ONCE = 32
"""Files that a worker parses at once."""
SHORTEST = 40
"""Shorter docstrings, in characters, say too little to keep."""
LONG_RUN = re.compile(r" {3,}")
"""Runs of spaces (tables, deep indents) are shortened to two: GPT-2 spends one token on each
space."""
SKIPPED_FOLDERS = {"test", "tests", "testing", "__pycache__", "site-packages", "lib2to3", "_vendor"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Docstring = tuple[str, str]
"""Heading (`module.Class.method(arguments)`) and text."""


class PydocsSource(WholeSource):
    """Documentation of this Python, one document per module or language topic."""

    name = "pydocs"

    def documents(self) -> Iterator[str]:
        yield from self._documents

    def describe(self) -> dict[str, Any]:
        return {
            "python": sys.version.split()[0],
            "packages": sorted({p for p, _ in self._files}),
            "characters_a_package_at_most": PACKAGE_LIMIT,
            "runs_of_spaces": "of 3 and more shortened to 2",
        }

    @cached_property
    def _files(self) -> list[tuple[str, Path]]:
        """(top-level package, file): the standard library, then installed packages, by path."""
        return [(f.relative_to(r).parts[0], f) for r in _roots() for f in _python_files(r)]

    @cached_property
    def _documents(self) -> list[str]:
        documents = list(_topics())
        seen: set[bytes] = set()
        used: dict[str, int] = {}
        workers = min(8, usable_cores())
        # Spawned, because a fork would copy the locks that other threads happen to hold.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, _start_worker) as pool:
            parsed = _parse(pool, [file for _, file in self._files], 2 * workers)
            for (package, file), docstrings in zip(self._files, parsed, strict=True):
                parts = [_module_name(file)]
                for heading, text in docstrings:
                    digest = hashlib.blake2b(text.encode("utf-8", "replace")).digest()
                    if digest not in seen and used.get(package, 0) < PACKAGE_LIMIT:
                        seen.add(digest)
                        used[package] = used.get(package, 0) + len(text)
                        parts.append(f"{heading}\n\n{text}" if heading else text)
                if len(parts) > 1:
                    documents.append("\n\n".join(parts) + "\n")
        return documents


def _parse(pool: ProcessPoolExecutor, files: list[Path], most: int) -> Iterator[list[Docstring]]:
    """The docstrings of each file. At most `most` batches are given to the workers at once: after
    an interruption the interpreter waits until all that they were given is done."""
    given = deque[Future[list[list[Docstring]]]]()
    for first in range(0, len(files), AT_ONCE):
        if len(given) == most:
            yield from given.popleft().result()
        given.append(pool.submit(_docstrings_of, files[first : first + AT_ONCE]))
    for batch in given:
        yield from batch.result()


def _docstrings_of(files: list[Path]) -> list[list[Docstring]]:
    """Runs in a worker."""
    return [_docstrings(file) for file in files]


def _roots() -> list[Path]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[k]) for k in ("stdlib", "purelib", "platlib")))


def _start_worker() -> None:
    """Leave signals to the parent and end when it ends; ignore warnings about other people's
    sources."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    if parent := multiprocessing.parent_process():

        def follow() -> None:
            connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield LONG_RUN.sub("  ", topics[name])


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS)
        for file in sorted(files):
            if file.endswith(".py"):
                yield Path(folder, file)


def _module_name(file: Path) -> str:
    """Dotted name, found by walking up while there is an __init__.py."""
    parts = [] if file.stem == "__init__" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts) or file.stem


def _docstrings(file: Path) -> list[Docstring]:
    """Docstrings of a source file in order; none if it does not parse."""
    try:
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[Docstring] = []

    def visit(node: Documented, name: str) -> None:
        text = ast.get_docstring(node, clean=False)
        if text and len(text) >= SHORTEST:
            found.append((name, LONG_RUN.sub("  ", inspect.cleandoc(text))))
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                visit(child, f"{name}.{child.name}" if name else f"class {child.name}")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = ", ".join(a.arg for a in child.args.args if a.arg != "self")
                prefix = f"{name.removeprefix('class ')}." if name else ""
                visit(child, f"{prefix}{child.name}({arguments})")

    visit(tree, "")
    return found
