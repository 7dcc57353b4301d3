"""A working folder of its own, the command line called inside this process, and a finished run."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from outpace.cli.main import main

from .helpers import TRAIN, Result, Run, tree


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; signal handlers that a command sets are put back afterwards."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process; a traceback is never right."""

    def call(*argv: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Result(code, out, err)

    return call


@pytest.fixture
def tiny(folder: Path, tiny_dataset: Path) -> Path:
    """data/tiny in the working folder: a copy, so that a test may damage it."""
    return Path(shutil.copytree(tiny_dataset, folder / "data" / "tiny"))


@pytest.fixture
def refused(run: Run, folder: Path) -> Run:
    """Run what must be refused: one line on standard error, the exit code, the disk as before.

    `refused(code, name, *argv)`; `name` is that of error[NAME].
    """

    def call(code: int, name: str, *argv: str | Path) -> Result:
        before = tree(folder)
        result = run(*argv)
        assert result.code == code, result.err
        assert result.error.startswith(f"error[{name}]: "), result.err
        assert result.err.count("error[") == 1
        assert tree(folder) == before
        return result

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A finished run of 3 steps with checkpoints at 1, 2 and 3 (2 kept); not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    argv = [*TRAIN, "--dataset", str(tiny_dataset), "--run_dir", str(folder / "run")]
    assert main(argv) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return folder / "run"


@pytest.fixture
def done(folder: Path, finished: Path, tiny: Path) -> Path:
    """A copy of the finished run in the working folder, to be damaged or continued."""
    return Path(shutil.copytree(finished, folder / "run"))
