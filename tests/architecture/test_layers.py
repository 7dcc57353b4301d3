"""The import matrix of the package, enforced. Lazy and TYPE_CHECKING imports count: a cycle is a
cycle. And the packages that must stay light are light."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "outpace"
BELOW_TRAIN = {
    "core", "config", "tokenizer", "ops", "runtime", "data", "model", "optim", "checkpoint",
    "evals", "generate", "interop",
}  # fmt: skip
MAY_IMPORT = {
    "core": set(),
    "config": {"core"},
    "tokenizer": {"core"},
    "ops": {"core"},
    "runtime": {"core", "config"},
    "data": {"core", "config", "tokenizer"},
    "model": {"core", "config", "ops"},
    "optim": {"core", "config"},
    "checkpoint": {"core", "config", "runtime"},
    "evals": {"core", "config", "tokenizer", "ops", "runtime"},
    "generate": {"core", "config", "tokenizer", "model"},
    "interop": {"core", "config", "model", "tokenizer"},  # a folder for others holds its tokenizer
    "train": BELOW_TRAIN,
    "tools": BELOW_TRAIN | {"train"},
    "bench": BELOW_TRAIN | {"train"},
    "report": {"core", "config"},
    "cli": BELOW_TRAIN | {"train", "tools", "bench", "report"},
}
NO_TORCH = {"core", "config", "report"}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [
    ".".join(("outpace", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for f in FILES
    if f.name != "__main__.py"
]


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) for every import in a file, wherever it stands."""
    inside = (root.name, *path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split("."))
            yield from (
                (node.lineno, ".".join(p for p in (*module, a.name) if p)) for a in node.names
            )


def violations(root: Path) -> list[str]:
    """A line for each import that the matrix does not allow."""
    found = []
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).parts[0].removesuffix(".py")
        for line, name in imports(path, root):
            top, *rest = name.split(".")
            if top == "torch" and own in NO_TORCH:
                found.append(f"{path}:{line}: {own} must stay free of torch")
            foreign = rest[0] if top == root.name and rest and rest[0] in MAY_IMPORT else own
            if own in MAY_IMPORT and foreign != own and foreign not in MAY_IMPORT[own]:
                found.append(f"{path}:{line}: {own} may not import {foreign}")
    return found


def test_the_matrix_has_no_cycle():
    level: dict[str, int] = {}
    while len(level) < len(MAY_IMPORT):
        ready = [p for p, deps in MAY_IMPORT.items() if p not in level and deps <= level.keys()]
        assert ready, f"cycle among {sorted(set(MAY_IMPORT) - set(level))}"
        level |= {p: 1 + max((level[d] for d in MAY_IMPORT[p]), default=-1) for p in ready}


def test_the_matrix_names_every_package_that_exists():
    packages = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert packages <= MAY_IMPORT.keys()


def test_imports_follow_the_matrix():
    assert not (bad := violations(PACKAGE)), "\n" + "\n".join(bad)


@pytest.mark.parametrize(
    ("package", "code", "complaint"),
    [
        ("core", "import torch", "core must stay free of torch"),
        ("config", "def f():\n    from outpace.data import order", "config may not import data"),
        ("model", "if TYPE_CHECKING:\n    import outpace.train.loop", "model may not import train"),
        ("data", "from ..train import loop", "data may not import train"),
        ("report", "from outpace import train", "report may not import train"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, package, code, complaint):
    folder = tmp_path / "outpace" / package
    folder.mkdir(parents=True)
    (folder / "x.py").write_text(code)
    (line,) = violations(tmp_path / "outpace")
    assert complaint in line


def test_everything_imported_from_the_package_exists():
    missing = []
    for path in FILES:
        for line, name in imports(path, PACKAGE):
            if name.split(".")[0] == "outpace" and not _exists(name):
                missing.append(f"{path}:{line}: {name}")
    assert not missing, "\n" + "\n".join(missing)


def _exists(name: str) -> bool:
    """Whether a dotted name is a module of the package, or stands in one."""
    parts = name.split(".")[1:]
    folder = PACKAGE.joinpath(*parts)
    if folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file():
        return True
    parent, attribute = PACKAGE.joinpath(*parts[:-1]), parts[-1]
    file = parent.with_suffix(".py") if parent != PACKAGE else parent / "__init__.py"
    if not file.is_file():
        file = parent / "__init__.py"
    return file.is_file() and attribute in _top_level_names(file)


def _top_level_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
    return names


def test_rows_of_every_table_can_be_found():
    """Plug-in tables name modules in strings, which no import statement checks."""
    rows = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Registry":
                rows += ast.literal_eval(node.args[1]).values()
    assert len(rows) > 10
    for row in rows:
        module, _, attribute = row.partition(":")
        assert importlib.util.find_spec(module), row
        assert not attribute or _exists(f"{module}.{attribute}"), row


def _python(code: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_core_config_report_and_every_help_page_do_without_torch(tmp_path):
    light = [m for m in MODULES if m.split(".")[1:2] and m.split(".")[1] in NO_TORCH | {"cli"}]
    code = """if True:
        import contextlib, importlib, io, json, sys
        for name in sys.argv[1:]:
            importlib.import_module(name)
        from outpace.cli.main import COMMANDS, main
        with contextlib.redirect_stdout(io.StringIO()):
            codes = [main([command, "--help"]) for command in COMMANDS.names()]
        print(json.dumps([codes, sorted(m for m in ("torch", "numpy", "transformers")
                                        if m in sys.modules)]))
    """
    codes, heavy = json.loads(_python(code, *light, cwd=tmp_path))
    assert set(codes) == {0}
    assert "torch" not in heavy
    assert "transformers" not in heavy


def test_the_first_help_page_imports_next_to_nothing(tmp_path):
    """It is what a newcomer waits for: neither the flags' parser nor colours are loaded for it."""
    code = """if True:
        import contextlib, io, json, sys
        from outpace.cli.main import main
        with contextlib.redirect_stdout(io.StringIO()):
            main(["--help"])
        print(json.dumps(sorted({m.split(".")[0] for m in sys.modules})))
    """
    loaded = set(json.loads(_python(code, cwd=tmp_path)))
    assert not loaded & {"torch", "numpy", "tyro", "rich", "filelock", "psutil", "difflib"}


def test_the_compiler_is_imported_only_to_compile(tmp_path):
    """It is half of all imports: a plan, a sample, an evaluation do without."""
    code = "import outpace.train.run, sys; print('torch._dynamo' in sys.modules)"
    assert _python(code, cwd=tmp_path) == "False\n"


def test_importing_a_module_does_no_work(tmp_path):
    """Every module, one after the other, under an audit hook: no socket, no file written, no
    process, nothing printed, no signal handler, no change of torch's global state."""
    code = """if True:
        import importlib, json, os, signal, sys, threading
        import numpy, psutil, pyarrow, pyarrow.parquet, torch, tiktoken, plotly, rich.progress
        import safetensors.torch, filelock, transformers, huggingface_hub, tyro
        import torch._dynamo, torch.nn.parallel
        seen, watching = [], True
        def hook(event, arguments):
            if not watching:
                return
            if event == "open" and arguments[1] and set(str(arguments[1])) & set("wax+"):
                seen.append(f"{event} {arguments[0]}")
            if event.startswith(("socket.", "subprocess.", "os.mkdir", "os.remove", "os.rename",
                                 "os.system", "os.exec", "os.fork", "shutil.", "tempfile.")):
                seen.append(f"{event} {arguments}"[:200])
        sys.addaudithook(hook)
        def state():
            return (threading.active_count(), torch.initial_seed(), torch.get_num_threads(),
                    [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)],
                    dict(os.environ))
        before = state()
        for name in sys.argv[1:]:
            importlib.import_module(name)
        after = state()
        watching = False
        print(json.dumps([seen, before == after]))
    """
    out = _python(code, *MODULES, cwd=tmp_path)
    assert out.count("\n") == 1, out
    seen, unchanged = json.loads(out)
    assert not seen
    assert unchanged
    assert not list(tmp_path.iterdir())
