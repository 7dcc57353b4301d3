"""What must not stand in the source: code run from data, machine paths; and what must."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "outpace").rglob("*.py"))
BINARY = {".png", ".safetensors", ".parquet", ".gz", ".zst", ".xz", ".bz2", ".bin", ".npz", ".pt"}
UNPICKLERS = {"dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "pandas"}


def dangers(code: str) -> list[str]:
    """A line for each call that can run code from data, or hands a string to a shell."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = {a.name for a in node.names} | {module}
            found += [f"{node.lineno}: {n}" for n in names & UNPICKLERS]
            if module == "pickle":  # its functions under names that say nothing
                found.append(f"{node.lineno}: from pickle import")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"):
            found.append(f"{node.lineno}: {name}")
        if name.startswith("pickle.") and name.endswith(("load", "loads", "Unpickler", "dump")):
            found.append(f"{node.lineno}: {name}")
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
            found.append(f"{node.lineno}: {name} with allow_pickle")
        if options.get("shell", "False") != "False":
            found.append(f"{node.lineno}: shell=True")
        if options.get("trust_remote_code", "False") != "False":
            found.append(f"{node.lineno}: trust_remote_code")
    return found


def test_no_code_is_ever_run_from_data():
    bad = [f"{f}:{line}" for f in FILES for line in dangers(f.read_text(encoding="utf-8"))]
    assert not bad, "\n" + "\n".join(bad)


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)", "exec(x)", "import pickle; pickle.load(f)", "torch.load(p)", "os.system(x)",
        "torch.load(p, weights_only=False)", "yaml.load(f)", "subprocess.run(x, shell=True)",
        "np.load(p, allow_pickle=True)", "import dill", "import shelve",
        "from pickle import loads", "import joblib", "load(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_each_danger_would_be_found(code):
    assert dangers(code)


def test_what_is_safe_is_not_complained_of():
    code = "model.eval(); torch.load(p, weights_only=True); re.compile(x); pickle.UnpicklingError"
    assert not dangers(code)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc
    assert len(doc.split()) >= 4


def _tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_file_knows_the_machine_it_was_written_on():
    machine = re.compile(
        r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/"
        r"|\bsand" r"box|\b(this|our|my|last|next) " r"session\b",
        re.IGNORECASE,
    )  # fmt: skip
    found = []
    for path in _tracked():
        if path.suffix in BINARY or "gpt2_vocab" in path.parts or not path.is_file():
            continue
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if match := machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found, "\n" + "\n".join(found)
