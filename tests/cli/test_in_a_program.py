"""Training inside another program, a notebook say, which goes on with its own work afterwards."""

import os
import signal
import threading
import time
from pathlib import Path
from runpy import run_path

import pytest
import torch

from outpace.cli.train import run
from outpace.core import console
from outpace.core.errors import UsageError
from outpace.core.log import warn
from outpace.core.signals import stop_signals

from .helpers import TRAIN


def train(*more: str) -> int:
    return run([*TRAIN[1:], "--deterministic", "on", *more])


def switches() -> list[object]:
    matmul = torch.backends.cuda.matmul
    return [
        {s: signal.getsignal(s) for s in (*stop_signals(), signal.SIGUSR2)},
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        (matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision),
        torch.backends.cudnn.allow_tf32,
        sorted(thread.name for thread in threading.enumerate()),
        Path.cwd(),
    ]


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_run_leaves_the_process_as_it_was(precision, tiny):
    torch.set_float32_matmul_precision(precision)
    try:
        before = switches()
        assert train("--run_dir", "a") == 0
        assert switches() == before
        with pytest.raises(UsageError, match="BATCH"):
            train("--run_dir", "b", "--context", "7", "--tokens_per_step", "64")
        assert switches() == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_after_a_run_that_was_interrupted_the_next_interrupt_is_the_programs_own(tiny):
    """It ended the process at once: to the run it was the second."""

    def interrupt_once_it_trains() -> None:
        while not Path("a/metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt_once_it_trains, daemon=True)
    other.start()
    assert train("--run_dir", "a", "--max_steps", "1000000") == 75
    other.join()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_tf32_that_was_asked_for_in_the_newer_way_is_no_error(tiny):
    """PyTorch raises where the older flag is read after the newer one was set."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        assert train("--run_dir", "a") == 0
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_a_notebook_gets_lines_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("outpace.core.console.err", run_path(console.__file__)["err"])
    warn("wet paint")
    assert capsys.readouterr().err == "warning: wet paint\n"
