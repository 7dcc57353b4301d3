"""`outpace COMMAND`: find the command, run it, turn errors into one line and an exit code."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from outpace.core.errors import BUG, DONE, UsageError
from outpace.core.limits import cores_to_run_on, usable_cores
from outpace.core.registry import Registry

COMMANDS = Registry(
    "command",
    {
        "train": "outpace.cli.train",
        "plan": "outpace.cli.plan",
        "prepare": "outpace.cli.prepare",
        "data": "outpace.cli.data",
        "evaluate": "outpace.cli.evaluate",
        "verdict": "outpace.cli.verdict",
        "contamination": "outpace.cli.contamination",
        "sample": "outpace.cli.sample",
        "convert": "outpace.cli.convert",
        "report": "outpace.cli.report",
        "status": "outpace.cli.status",
        "verify": "outpace.cli.verify",
        "doctor": "outpace.cli.doctor",
        "prove-resume": "outpace.cli.prove_resume",
        "replay": "outpace.cli.replay",
        "bench": "outpace.cli.bench",
    },
)
COMPUTING = ("train", "evaluate", "verdict", "sample", "prove-resume", "replay")
TOGETHER = ("train", "evaluate", "verdict", "prove-resume")
"""What several processes do as one group."""
SPIN_COUNT = "2000"
"""How often a thread of libgomp spins at the end of a parallel region before it sleeps. By default
it spins for milliseconds, which takes cores from other programs and leaves the thread no time slice
when there is work again: beside other programs, two threads on two cores are 1.2 to 3 times as fast
with this setting. Alone they are as fast as before (docs/lab-log.md)."""
INTERRUPTED = 130
"""Ctrl-C, except where work is saved first (training, preparation): 128 + SIGINT, as in shells."""
NOBODY_READS = 141
"""Standard output was closed: 128 + SIGPIPE, as in shells."""

HELP = """usage: outpace COMMAND [FLAGS]      (outpace COMMAND --help for its flags)

{commands}
exit codes: 0 done, 1 bug, 2 usage, 3 data, 4 checkpoint, 5 storage, 6 numerics, 7 memory,
8 run folder in use, 9 peer lost, 10 network, 11 requirement not met, 75 stopped and resumable,
130/143 stopped at once
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code. No exception leaves it."""
    argv = sys.argv[1:] if argv is None else argv
    _open_standard_streams()
    interrupted = _raise_on_interrupt()
    try:  # with nothing heavy imported yet, Ctrl-C is caught almost from the start
        _show_any_text()
        code = _dispatch(argv)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as leave:  # from the parser of flags
        code = leave.code if isinstance(leave.code, int) else BUG
    except BrokenPipeError:  # a help page cut by `| head`; `say` handles its own
        code = NOBODY_READS
    except Exception as error:
        # An interrupt inside a C extension's import may come out as an ImportError.
        code = INTERRUPTED if interrupted.is_set() else _fail(error)
    if code not in (DONE, INTERRUPTED) and argv[:1] and argv[0] in TOGETHER:
        _tell_others(code)
    return _flush(code)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return DONE
    if argv[0] == "--version":
        from outpace import __version__

        print(__version__)
        return DONE
    _check_working_folder()
    if argv[0] in COMPUTING and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT  # read once, when torch is imported
    if "OMP_NUM_THREADS" not in os.environ and (cores := usable_cores()) < len(cores_to_run_on()):
        os.environ["OMP_NUM_THREADS"] = str(cores)  # libgomp ignores a container's CPU quota
    # PyTorch's C++ code warns about kernels that it merely skips.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    code: int = COMMANDS.load(argv[0]).run(argv[1:])
    return code


def _open_standard_streams() -> None:
    """Replace a standard stream that a shell closed (`>&-`) by /dev/null: else the next file
    opened, a shard or a checkpoint, would get its number, and with it what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", errors="backslashreplace", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", errors="backslashreplace", closefd=False)


def _show_any_text() -> None:
    """Escape characters that the terminal's encoding lacks (a C locale, say) instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def _check_working_folder() -> None:
    """Refuse a deleted working folder, in which MKL, for one, ends the process."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError(
            "NO-WORKING-FOLDER", "the working folder was deleted", do="cd to another, and run again"
        ) from error


def help_text() -> str:
    """The page of `outpace --help`: each command with the first line of its module."""
    return HELP.format(commands=COMMANDS.help_lines(15))


def _fail(error: Exception) -> int:
    """Print the error in one line, and return the exit code."""
    from outpace.core.crash import explain, wants_traceback
    from outpace.core.log import fail

    known = explain(error)
    if wants_traceback():
        import traceback

        traceback.print_exception(error)
    fail(str(known))
    return known.exit_code


def _tell_others(code: int) -> None:
    """Tell the other processes of the group, which may wait for this one, that it has failed."""
    if os.environ.get("RANK") and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        _flush(code)
        with contextlib.suppress(KeyboardInterrupt, ImportError), _silent():
            from outpace.runtime.rollcall import will_not_join

            will_not_join(code)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches standard error: PyTorch's C++ code prints stacks when there is no store."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _flush(code: int) -> int:
    """Flush the standard streams, so that the interpreter's exit cannot fail on them."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            from outpace.core.log import discard

            discard(stream)
            if code == DONE and not isinstance(error, BrokenPipeError):
                code = _fail(error)
    return code


def _raise_on_interrupt() -> threading.Event:
    """Make Ctrl-C raise KeyboardInterrupt, and remember that it did."""
    interrupted = threading.Event()

    def on_interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, on_interrupt)
    return interrupted


if __name__ == "__main__":
    sys.exit(main())
