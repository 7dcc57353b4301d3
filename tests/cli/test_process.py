"""What only a process of its own shows: closed pipes, signals, locales, limits, crashes."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outpace.cli.main import COMMANDS
from outpace.core.limits import cores_to_run_on

from .helpers import TRAIN

ROOT = Path(__file__).resolve().parents[2]
OUTPACE = [sys.executable, "-m", "outpace"]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | changes


def start(argv, cwd, **options) -> subprocess.Popen:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()} | options
    return subprocess.Popen([str(a) for a in argv], cwd=cwd, **options)


# In a terminal.


def in_terminal(argv: list[str], folder: Path, **changes: str) -> str:
    """What `outpace ARGV` writes, standard output and error in a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    env = environment(TERM="xterm-256color", **changes)
    process = start([*OUTPACE, *argv], folder, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # nobody writes any more
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    process.wait()
    return said.decode()


@posix
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["train", "--modl_size", "3"], "did you mean --model_size"),
        (["train", "--max_steps", "x"], "--max_steps"),
        (["status"], "needs RUN"),
    ],
)
def test_a_wrong_flag_is_one_line_in_a_terminal_too(argv, line, folder):
    said = in_terminal(argv, folder)
    # Before version 14.3, rich colours the end of the line, too.
    red = r"\x1b\[1;31m"
    once = re.fullmatch(rf"{red}(error\[FLAGS\]: [^\x1b─]*)\x1b\[0m({red})?\r\n(\x1b\[0m)?", said)
    assert once and line in once[1], said


@posix
def test_a_help_page_is_coloured_unless_no_color_is_set(folder):
    assert "\x1b[" in in_terminal(["train", "--help"], folder)
    plain = in_terminal(["train", "--help"], folder, NO_COLOR="1")
    assert "--model_size" in plain and "\x1b" not in plain


# Nobody reads.


@posix
def test_training_goes_on_when_its_standard_output_is_closed(tiny, folder):
    process = start([*OUTPACE, *TRAIN, "--run_dir", "r"], folder)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 0, err
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert json.loads((folder / "r" / "STATUS.json").read_text())["state"] == "finished"
    assert (folder / "r" / "report.html").is_file()


@posix
@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["status", "run"]])
def test_a_page_that_nobody_reads_ends_quietly(argv, done, folder):
    read, write = os.pipe()
    os.close(read)
    process = start([*OUTPACE, *argv], folder, stdout=write)
    os.close(write)
    assert process.stderr.read() == b""
    assert process.wait() in (0, 141)


@posix
def test_an_error_that_nobody_reads_keeps_its_exit_code(folder):
    read, write = os.pipe()
    os.close(read)
    process = start([*OUTPACE, "status", "nothing"], folder, stdout=write, stderr=write)
    os.close(write)
    assert process.wait() == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("argv", [["--help"], ["status", "run", "--json"]])
def test_a_result_that_does_not_fit_on_the_disk_is_a_storage_error(argv, done, folder):
    with open("/dev/full", "w") as full:
        process = start([*OUTPACE, *argv], folder, stdout=full)
        err = process.stderr.read().decode()
    assert process.wait() == 5
    assert err.startswith("error[STORAGE]: No space left on device")
    assert err.count("\n") == 1


# Interrupted.


@posix
@pytest.mark.parametrize("moment", ["torch", "numpy", "torch.nn.functional"])
def test_ctrl_c_while_the_libraries_are_loaded_gives_130(moment, folder):
    code = (
        "import os, signal, sys\n"
        # As in a shell's foreground; a shell's background ignores it, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {moment!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from outpace.cli.main import main\n"
        "sys.exit(main(['sample', 'x']))\n"
    )
    process = start([sys.executable, "-c", code], folder)
    out, err = process.communicate()
    assert process.returncode == 130, err.decode()
    assert (out, err) == (b"", b"")


@posix
def test_ctrl_c_while_text_is_read_leaves_without_a_traceback(folder):
    (folder / "long.txt").write_text("Call me Ishmael. Some years ago.\n\n" * 1_000_000)
    argv = ["prepare", "files", "--input", "long.txt", "--output", "out", "--tokenizer", "bytes"]
    process = start([*OUTPACE, *argv], folder)
    while process.poll() is None and not list(folder.glob("out/*.bin.tmp")):
        time.sleep(0.01)  # until the first tokens are there
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode in (75, 130), err.decode()
    assert b"Traceback" not in err


# Surroundings.


@posix
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_the_c_locale_works(utf8, done, folder):
    (folder / "naïve.txt").write_text("naïve café " * 500, encoding="utf-8")
    env = environment(LC_ALL="C", PYTHONUTF8=utf8, PYTHONCOERCECLOCALE="0")
    argv = ["--input", "naïve.txt", "--output", "data/naïve", "--tokenizer", "bytes"]
    for line in (["prepare", "files", *argv], ["status", "run"], ["status", "naïve"], ["--help"]):
        process = start([*OUTPACE, *line], folder, env=env)
        out, err = process.communicate()
        assert process.returncode == (2 if "naïve" in line else 0), err.decode()
        assert b"Traceback" not in err
        assert out or err
    assert (folder / "data" / "naïve" / "manifest.json").is_file()


def test_train_py_is_outpace_train(folder):
    env = environment(COLUMNS="100")
    pages = [
        subprocess.run([*line, "--help"], cwd=folder, env=env, capture_output=True, check=True)
        for line in ([sys.executable, str(ROOT / "train.py")], [*OUTPACE, "train"])
    ]
    assert pages[0].stdout == pages[1].stdout
    assert b"--model_size" in pages[0].stdout


@posix
def test_memory_that_the_system_refuses_is_exit_code_7_with_advice(tiny, folder):
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from outpace.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = [*TRAIN, "--n_embd", "16384", "--run_dir", "r", "--val_tokens", "1"]
    process = start([sys.executable, "-c", code, *argv], folder)
    _, err = process.communicate()
    last = err.decode().splitlines()[-1]
    assert process.returncode == 7, err.decode()
    assert last.startswith("error[MEMORY]: ")
    assert "--micro_batch_size" in last
    assert b"Traceback" not in err


# Bugs.


@pytest.fixture
def buggy(folder, monkeypatch):
    """A command with a bug, added as any command is: a file and a row."""
    (folder / "buggy_command.py").write_text(
        '"""`outpace buggy`: fails."""\n\ndef run(argv):\n    raise eval(argv[0])\n'
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(COMMANDS._table, "buggy", "buggy_command")
    (folder / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))


def test_a_bug_is_one_line_and_a_file_with_the_traceback(run, buggy, folder):
    result = run("buggy", "ZeroDivisionError('x\\ny')")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert result.err.startswith("error[BUG]: ZeroDivisionError: x; do: ")
    (crash,) = (folder / "tmp").glob("crash-*.txt")
    assert str(crash) in result.err
    assert "buggy_command.py" in crash.read_text()


def test_a_bug_shows_its_traceback_when_asked(buggy, folder, capsys, monkeypatch):
    from outpace.cli.main import main

    monkeypatch.setenv("OUTPACE_TRACEBACK", "1")
    assert main(["buggy", "ZeroDivisionError('x')"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error[BUG]: ZeroDivisionError: x")
    assert not list((folder / "tmp").iterdir())


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        ("PermissionError(13, 'Permission denied', '/x')", 5, "STORAGE"),
        ("MemoryError()", 7, "MEMORY"),
        ("__import__('torch').OutOfMemoryError('CUDA out of memory. Tried 2 GiB')", 7, "MEMORY"),
        ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', 7, "MEMORY"),
        ("KeyboardInterrupt()", 130, ""),
        ("SystemExit(3)", 3, ""),
        ("SystemExit('words')", 1, ""),
        ("BrokenPipeError(32, 'Broken pipe')", 141, ""),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(error, code, name, run, buggy, folder):
    result = run("buggy", error)
    assert result.code == code
    assert result.err.startswith(f"error[{name}]: ") if name else not result.err
    assert not list((folder / "tmp").iterdir())


def test_a_bug_while_training_leaves_its_traceback_in_the_run_folder(
    run, tiny, folder, monkeypatch
):
    from outpace.ops.attention import BACKENDS

    (folder / "buggy_attention.py").write_text(
        "def attend(*a, **k): raise ZeroDivisionError('in the model')\n"
        "def why_not(*a): return None\n"
        "def kernel(*a): return 'buggy'\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(BACKENDS._table, "buggy", "buggy_attention")
    result = run(*TRAIN, "--run_dir", "r", "--attention_backend", "buggy")
    assert result.code == 1
    assert result.error.startswith("error[BUG]: ZeroDivisionError: in the model")
    assert "buggy_attention.py" in next((folder / "r").glob("crash-*.txt")).read_text()
    status = json.loads((folder / "r" / "STATUS.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 1)
    assert run(*TRAIN, "--run_dir", "r").code == 0


@pytest.mark.parametrize(
    "command", [["train.py"], ["-m", "outpace", "plan"], ["-c", "import rich"]]
)
def test_without_the_dependencies_one_line_says_how_to_get_them(command, folder):
    bare = [sys.executable, "-S", *command]  # -S: no site-packages
    python = subprocess.run(
        bare, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    if command[0] == "-c":
        assert "No module named 'rich'" in python.stderr, "the premise of this test"
        return
    assert python.returncode == 2
    assert python.stderr.startswith("error[NO-PACKAGE]: ") and python.stderr.count("\n") == 1
    assert "make install" in python.stderr and ".venv/bin/activate" in python.stderr


@pytest.mark.parametrize(
    ("where", "error"),
    [
        (
            "import sys; sys.version_info = (3, 10, 13, 'final', 0)",
            "error[PYTHON]: outpace needs Python 3.11 or newer",
        ),
        ("import os; os.name = 'nt'", "error[SYSTEM]: outpace needs Linux or macOS"),
    ],
)
def test_an_older_python_and_windows_are_told_so_in_one_line(where, error, folder):
    code = f"{where}; import outpace.cli.main"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp")
@pytest.mark.parametrize(("given", "count"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_do_not_spin_for_long_unless_the_user_says_so(given, count, tiny, folder):
    env = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-m", "outpace", "train", "--dataset", "tiny", "--init_from", "none"],
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose"} | given,
        capture_output=True,
        text=True,
    )
    assert "NO-MODEL" in done.stderr and f"GOMP_SPINCOUNT = '{count}'" in done.stderr


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A real control group whose processes get one core's time."""
    group = Path("/sys/fs/cgroup/cpu") / f"outpace-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("no control groups of version 1 that may be changed")
    yield group
    group.rmdir()


@pytest.mark.skipif(len(cores_to_run_on()) < 2, reason="a share of one core is all of it")
@pytest.mark.parametrize(("given", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_a_containers_share_of_time_sets_the_threads(given, threads, one_core, folder):
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "outpace", "doctor"],
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT)} | given,
        preexec_fn=lambda: (one_core / "cgroup.procs").write_text(str(os.getpid())),
        capture_output=True,
        text=True,
    )
    assert f"threads: torch uses {threads} on 1 cores" in done.stdout, done.stdout


@pytest.mark.parametrize("where", [">/dev/full 2>&1", "2>/dev/full", ">&-", "2>&-", ">&- 2>&-"])
def test_training_goes_on_and_ends_well_whatever_becomes_of_its_streams(where, tiny, folder):
    """A full disk under a log, or a stream that the shell closed."""
    command = [sys.executable, "-m", "outpace", *TRAIN, "--run_dir", "run"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", f"{shlex.join(command)} {where}"], cwd=folder, env=env)
    assert done.returncode == 0
    assert json.loads((folder / "run" / "STATUS.json").read_text())["state"] == "finished"
