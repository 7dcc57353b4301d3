"""Signals at any time: asked to stop, a run saves once and leaves with 75, whatever it was doing;
asked twice, it stops at once and loses nothing that was saved."""

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import poison
import psutil
import pytest
from conftest import ROOT, TINY, final_hash, write_corpus
from harness import (
    Fault,
    assert_nothing_lost,
    assert_steps_stand_once,
    assert_tidy,
    call,
    events,
    logged,
    start,
    status,
)
from peers import call_ranks, start_ranks
from trials_resume import KILL_SEED, hashes, newest

from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import is_held
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shards import open_dataset, verify_dataset
from outpace.data.sources.files import FilesSource

STEPS = 24
SLOW = (poison.slow_steps, 0.02)
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


def command(dataset: Path, run: Path, *extra: str, steps: int = STEPS) -> list[str]:
    return [
        "train", *TINY, "--dataset", str(dataset), "--run_dir", str(run), "--max_steps", str(steps),
        "--save_every_steps", "8", "--eval_every_steps", "5", "--keep_checkpoints", "100",
        "--val_tokens", "512", *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def straight(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    child = call(*command(tiny_dataset, folder / "run"), cwd=folder)
    assert child.code == 0, child.err
    return folder / "run"


def assert_stopped(run: Path, err: str, step: int | None = None) -> None:
    """Saved where it stands, resumable, and said so in order; the lock is free."""
    record = status(run)
    assert (record["state"], record["code"], record["resumable"]) == ("stopped", 75, True), record
    assert record["last_verified_checkpoint"] == f"step-{record['last_step']:08d}"
    assert step is None or record["last_step"] == step, record
    assert "Traceback" not in err and "error[" not in err
    assert_nothing_lost(run)
    assert_tidy(run)


def assert_goes_on(run: Path, dataset: Path, straight: Path) -> None:
    """The same command ends in the same bits, each step and evaluation once."""
    child = call(*command(dataset, run), cwd=run.parent)
    assert child.code == 0, child.out + child.err
    assert final_hash(run) == final_hash(straight)
    assert hashes(run)[STEPS] == hashes(straight)[STEPS]
    assert_steps_stand_once(run)
    got, want = (
        [(r["step"], r["task"], r["loss"]) for r in read_json_lines(folder / "evals.jsonl")]
        for folder in (run, straight)
    )
    assert got == want


@pytest.mark.parametrize("number", STOPS, ids=lambda n: n.name)
def test_s1_a_signal_in_a_step_saves_before_the_next_micro_step(
    straight, tiny_dataset, tmp_path, number
):
    """Received in the first micro-step of step 7: there is no second, step 6 is saved."""
    run, count = tmp_path / "run", tmp_path / "count"
    child = call(
        *command(tiny_dataset, run),
        cwd=tmp_path,
        setup=poison.at_forward,
        args=(13, number, True, str(count)),
    )
    assert child.code == 75, child.err
    assert number.name in child.err and "once more to stop at once" in child.err
    assert "the same command continues" in child.out
    assert count.stat().st_size == 13
    assert_stopped(run, child.err, step=6)
    assert_goes_on(run, tiny_dataset, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_s1_a_signal_from_outside_at_a_random_moment(straight, tiny_dataset, tmp_path, number):
    run = tmp_path / "run"
    child = start(*command(tiny_dataset, run), cwd=tmp_path, setup=SLOW[0], args=SLOW[1:])
    child.until_step(run, 5)
    time.sleep(random.Random(KILL_SEED).uniform(0, 0.05))
    child.send(number)
    assert child.wait() == 75
    assert_stopped(run, child.err)
    assert_goes_on(run, tiny_dataset, straight)


def test_s1_the_limit_of_time_stops_like_a_signal(straight, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    child = call(*command(tiny_dataset, run, "--max_hours", "1e-9"), cwd=tmp_path)
    assert child.code == 75 and "--max_hours" in child.out
    assert status(run)["state"] == "stopped" and not status(run)["resumable"], (
        "nothing was done yet"
    )
    assert_goes_on(run, tiny_dataset, straight)


@pytest.mark.parametrize("place", ["fsync", "rename"])
def test_s2_a_signal_during_a_save_lets_it_end_once(straight, tiny_dataset, tmp_path, place):
    run = tmp_path / "run"
    fault = Fault(place, "SIGTERM", path=".tmp-8-")
    child = call(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    assert child.code == 75, child.err
    saved = [e["step"] for e in events(run, "checkpoint")]
    assert saved[0] == 8 and len(saved) == len(set(saved)) <= 2
    assert_stopped(run, child.err)
    assert_goes_on(run, tiny_dataset, straight)


def test_s3_a_signal_in_a_validation_ends_it_without_a_record(straight, tiny_dataset, tmp_path):
    """It arrives in the first of four batches: there is no second, but for the checkpoint's probe.
    The next start makes the validation that was cut off."""
    run, count = tmp_path / "run", tmp_path / "count"
    child = call(
        *command(tiny_dataset, run),
        cwd=tmp_path,
        setup=poison.all_of,
        args=(
            (poison.small_evaluations, 128),
            (poison.at_forward, 1, signal.SIGTERM, False, str(count)),
        ),
    )
    assert child.code == 75, child.err
    assert not list(read_json_lines(run / "evals.jsonl")) and count.stat().st_size == 2
    assert_stopped(run, child.err, step=5)
    assert_goes_on(run, tiny_dataset, straight)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in GPT-2's tokens, which HellaSwag needs, and questions beside it."""
    folder = tmp_path_factory.mktemp("words")
    source = FilesSource([str(write_corpus(folder / "text"))])
    prepare(source, folder / "data", PrepareOptions(tokenizer="gpt2", val_fraction=0.1))
    with open(folder / "questions.jsonl", "w") as f:
        for i in range(600):
            question = {
                "ind": i,
                "ctx": f"The {i}th gull stood on the rail and",
                "endings": ["sang.", "looked at the water.", "fell asleep.", "went home."],
                "label": i % 4,
            }
            f.write(json.dumps(question) + "\n")
    return folder


def test_s3_a_signal_in_hellaswag_ends_it_between_batches(words, tmp_path):
    """The second of some three batches is where it arrives: no third, no record; the next start
    scores all questions."""
    run, count = tmp_path / "run", tmp_path / "count"
    arguments = command(words / "data", run, "--hellaswag_path", str(words / "questions.jsonl"))
    arguments += ["--hellaswag_limit", "600", "--hellaswag_every_steps", "3"]
    arguments += ["--eval_every_steps", "0", "--max_steps", "4"]
    options = {"cwd": tmp_path, "setup": poison.all_of}
    child = call(
        *arguments,
        **options,
        args=(
            (poison.any_questions,),
            (poison.at_forward, 2, signal.SIGTERM, False, str(count)),
        ),
    )
    assert child.code == 75, child.err
    assert not list(read_json_lines(run / "evals.jsonl"))
    seen = count.stat().st_size
    assert_stopped(run, child.err, step=3)
    again = call(
        *arguments,
        **options,
        args=((poison.any_questions,), (poison.at_forward, 0, 0, False, str(count))),
    )
    assert again.code == 0, again.err
    scored = [r for r in read_json_lines(run / "evals.jsonl") if r["task"] == "hellaswag"]
    assert [(r["step"], r["questions"]) for r in scored] == [(3, 600), (4, 600)]
    assert count.stat().st_size > 3 * seen, "the first was cut short"


def test_s3_a_signal_while_the_last_samples_are_made(straight, tiny_dataset, tmp_path):
    """All steps are done and saved; what is missing is made up for by the next start. Four forward
    passes come before those of the samples: of three checkpoints' probes and of the validation."""
    run = tmp_path / "run"
    extra = ("--sample_tokens", "24", "--eval_every_steps", "0")
    child = call(
        *command(tiny_dataset, run, *extra),
        cwd=tmp_path,
        setup=poison.at_forward,
        args=(7, signal.SIGTERM, False),
    )
    assert child.code == 75, child.err
    assert_stopped(run, child.err, step=STEPS)
    child = call(*command(tiny_dataset, run, *extra), cwd=tmp_path)
    assert child.code == 0 and final_hash(run) == final_hash(straight)
    assert len(list(read_json_lines(run / "samples.jsonl"))) == 2


def test_a_signal_as_soon_as_the_status_says_running_stops_resumable(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    fault = Fault("open", "SIGUSR1", path="events.jsonl")
    child = call(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    assert child.code == 75, child.err
    assert status(run)["state"] == "stopped"


def test_s3_a_signal_while_the_report_is_written(straight, tiny_dataset, tmp_path):
    """The run is finished then, and stays so."""
    run = tmp_path / "run"
    fault = Fault("replace", "SIGTERM", path="report.html")
    child = call(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    assert child.code == 0 and final_hash(run) == final_hash(straight)
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_s3_a_signal_in_a_preparation_stops_resumable(tmp_path):
    text = write_corpus(tmp_path / "text")
    arguments = [
        "prepare", "files", "--input", str(text), "--output", "data", "--tokenizer", "bytes",
        "--shard_tokens", "4000",
    ]  # fmt: skip
    fault = Fault("replace", "SIGTERM", at=3, path=".bin")
    child = call(*arguments, cwd=tmp_path, faults=[fault])
    assert child.code == 75, child.out + child.err
    assert call(*arguments, cwd=tmp_path).code == 0
    verify_dataset(open_dataset(tmp_path / "data"))


def test_a_signal_to_one_of_the_processes_that_share_a_preparation(tmp_path):
    text = write_corpus(tmp_path / "text")
    arguments = ["prepare", "files", "--input", str(text / "*.txt"), "--tokenizer", "bytes"]
    shared = [*arguments, "--output", "data", "--world_size", "2", "--rank"]
    fault = Fault("replace", "SIGTERM", path=".zip")
    child = call(*shared, "0", cwd=tmp_path, faults=[fault])
    assert child.code == 75, child.err
    assert not list(tmp_path.glob("data/.parts/*/*.tmp"))
    assert [call(*shared, rank, cwd=tmp_path).code for rank in "10"] == [0, 0]
    verify_dataset(open_dataset(tmp_path / "data"))


PYDOCS_OF_SITE = """
import sys
from pathlib import Path
from outpace.cli.main import main
from outpace.data.sources import pydocs
pydocs._roots = lambda: [Path("site")]
sys.exit(main(["prepare", "pydocs", "--tokenizer", "bytes", "--output", "data"]))
"""


def test_a_signal_while_files_are_parsed_does_not_wait_for_all_of_them(tmp_path):
    """The first file and the last are pipes, whose readers wait until somebody writes."""
    (tmp_path / "site").mkdir()
    for i in range(1000):
        (tmp_path / "site" / f"{i:04d}.py").write_text("")
    first, last = (tmp_path / "site" / f"{name}.py" for name in ("0", "z"))
    os.mkfifo(first)
    os.mkfifo(last)
    with subprocess.Popen(
        [sys.executable, "-c", PYDOCS_OF_SITE], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            writer = None
            while writer is None and process.poll() is None:
                with contextlib.suppress(OSError):  # nobody reads it yet
                    writer = os.open(first, os.O_WRONLY | os.O_NONBLOCK)
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None and writer is not None
            assert "STOPPED" in process.stderr.readline()
            os.close(writer)
            assert process.wait(60) == 75
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_s4_a_signal_before_the_first_step_leaves_nothing_half_made(
    straight, tiny_dataset, tmp_path, number
):
    """At random moments from the first import on: ended by the signal, 130, or 75 once there is
    something to save; whatever was left, the same command runs to the same end."""
    rng, codes = random.Random(KILL_SEED), set()
    for i in range(5):
        run = tmp_path / f"run-{i}"
        child = start(*command(tiny_dataset, run), cwd=tmp_path, setup=SLOW[0], args=SLOW[1:])
        child.until(lambda child=child: child.err_file.exists())
        time.sleep(rng.uniform(0, 0.6))
        child.send(number)
        code = child.wait()
        codes.add(code)
        assert code in (75, 130, -number), child.err
        assert "Traceback" not in child.err and "error[" not in child.err, child.err
        if run.exists():
            assert not is_held(RunFolder(run))
    child = call(*command(tiny_dataset, run), cwd=tmp_path)
    assert child.code == 0 and final_hash(run) == final_hash(straight)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_s5_a_second_signal_ends_at_once(straight, tiny_dataset, tmp_path, number, code):
    """While a save hangs: the first says that a second will not wait, the second does not; the
    save is abandoned, the one before it whole."""
    run = tmp_path / "run"
    fault = Fault("fsync", "sleep:60", path=".tmp-16-")
    child = start(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    child.until(lambda: newest(run) == 8 and logged(run) >= 16)
    child.send(number)
    child.until(lambda: "once more to stop at once" in child.err)
    time.sleep(1.2)  # less is the same request, which torchrun passes on
    assert child.code is None, "it waits for its save"
    child.send(number)
    assert child.wait(10) == code
    assert newest(run) == 8
    assert_nothing_lost(run)
    assert_goes_on(run, tiny_dataset, straight)


def test_s6_a_storm_of_signals_is_one_request(straight, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    child = start(*command(tiny_dataset, run), cwd=tmp_path, setup=SLOW[0], args=SLOW[1:])
    child.until_step(run, 5)
    for _ in range(50):
        if child.code is None:
            child.send(signal.SIGTERM)
    assert child.wait() == 75, child.err
    assert child.err.count("SIGTERM received") == 1
    assert [e["step"] for e in events(run, "checkpoint")] == [status(run)["last_step"]]
    assert_stopped(run, child.err)
    assert_goes_on(run, tiny_dataset, straight)


def test_s7_a_terminal_that_closes_saves_first_and_under_nohup_changes_nothing(
    straight, tiny_dataset, tmp_path
):
    run = tmp_path / "run"
    child = start(*command(tiny_dataset, run), cwd=tmp_path, setup=SLOW[0], args=SLOW[1:])
    child.until_step(run, 5)
    child.send(signal.SIGHUP)
    assert child.wait() == 75 and "SIGHUP" in child.err
    assert_stopped(run, child.err)
    child = start(
        *command(tiny_dataset, run),
        cwd=tmp_path,
        setup=poison.all_of,
        args=((poison.ignore, signal.SIGHUP), SLOW),
    )
    child.until_step(run, status(run)["last_step"] + 2)
    child.send(signal.SIGHUP)
    assert child.wait() == 0 and "SIGHUP" not in child.err
    assert final_hash(run) == final_hash(straight)


def test_s7_an_output_that_nobody_reads_does_not_stop_it(straight, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    child = call(*command(tiny_dataset, run), cwd=tmp_path, setup=poison.closed_output)
    assert child.code == 0 and "Traceback" not in child.err, child.err
    assert final_hash(run) == final_hash(straight)


def test_s8_sigusr2_saves_now_and_goes_on(straight, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    extra = ("--save_every_steps", "0")
    child = start(*command(tiny_dataset, run, *extra), cwd=tmp_path, setup=SLOW[0], args=SLOW[1:])
    child.until_step(run, 4)
    child.send(signal.SIGUSR2)
    assert child.wait() == 0, child.err
    saved = [e["step"] for e in events(run, "checkpoint")]
    assert len(saved) == 2 and 4 <= saved[0] < saved[1] == STEPS
    assert final_hash(run) == final_hash(straight)
    assert_nothing_lost(run)


def test_s9_a_save_that_outlasts_the_time_before_the_kill(straight, tiny_dataset, tmp_path):
    """A disk that hangs, SIGTERM, and SIGKILL when the time given is over: the older one is whole,
    and the remains are cleared away."""
    run = tmp_path / "run"
    fault = Fault("fsync", "sleep:60", path=".tmp-16-")
    child = start(*command(tiny_dataset, run), cwd=tmp_path, faults=[fault])
    child.until(lambda: newest(run) == 8 and logged(run) >= 16)
    child.send(signal.SIGTERM)
    child.until(lambda: "SIGTERM received" in child.err)
    time.sleep(0.5)
    child.kill()
    assert child.code == -signal.SIGKILL and newest(run) == 8
    assert_nothing_lost(run)
    assert list((run / "checkpoints").glob(".tmp-*"))
    assert_goes_on(run, tiny_dataset, straight)
    assert_tidy(run)


def test_s10_a_machine_that_sleeps_is_not_taken_for_a_hang(straight, tiny_dataset, tmp_path):
    """Stopped for longer than the watchdog allows: it goes on as if nothing had been."""
    run = tmp_path / "run"
    watched = ("--watchdog_minutes", "0.05")  # 3 s
    child = start(*command(tiny_dataset, run, *watched), cwd=tmp_path, setup=SLOW[0], args=SLOW[1:])
    child.until_step(run, 5)
    child.send(signal.SIGSTOP)
    time.sleep(4)
    child.send(signal.SIGCONT)
    assert child.wait() == 0 and "STUCK" not in child.err, child.err
    assert final_hash(run) == final_hash(straight)
    rates = [r["tokens_per_second"] for r in read_json_lines(run / "metrics.jsonl")]
    assert all(rate is None or rate > 0 for rate in rates)


def test_a_hang_ends_the_process_though_nobody_reads_what_it_says(tiny_dataset, tmp_path):
    """Both of its streams go into a pipe that is full, where a warning waits for ever."""
    run = tmp_path / "run"
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    much = ("--sample_every_steps", "1", "--sample_tokens", "20", "--watchdog_minutes", "0.1")
    process = subprocess.Popen(
        [sys.executable, "-m", "outpace", *command(tiny_dataset, run, *much, steps=100_000)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=writer,
    )
    os.close(writer)
    try:
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            if not logged(run):
                with contextlib.suppress(BlockingIOError):
                    os.read(reader, 4096)
            time.sleep(0.05)
        assert process.poll() == 9
    finally:
        process.kill()
        process.wait()
        os.close(reader)
    assert list(run.glob("stacks-*")) and status(run)["code"] == 9


def two(dataset: Path, run: Path) -> list[str]:
    batch = ["--gradient_accumulation_steps", "1", "--tokens_per_step", "128"]
    return [*command(dataset, run, *batch, steps=400), "--save_every_steps", "0"]


@pytest.mark.parametrize("rank", [0, 1])
def test_s11_a_signal_to_one_process_stops_both_at_the_same_step(tiny_dataset, tmp_path, rank):
    run = tmp_path / "run"
    ranks = start_ranks(2, *two(tiny_dataset, run), cwd=tmp_path)
    ranks[0].until_step(run, 5)
    ranks[rank].send(signal.SIGTERM)
    assert [r.wait() for r in ranks] == [75, 75], ranks[0].err + ranks[1].err
    assert_stopped(run, ranks[0].err + ranks[1].err)
    at = status(run)["last_step"]
    more = [*two(tiny_dataset, run), "--max_steps", str(at + 2)]
    ranks = start_ranks(2, *more, cwd=tmp_path)
    assert [r.wait() for r in ranks] == [0, 0], ranks[0].err + ranks[1].err
    assert f"at step {at}" in ranks[0].out
    assert_steps_stand_once(run)


@pytest.mark.parametrize("rank", [0, 1])
def test_s11_a_signal_to_one_process_ends_the_evaluation_of_both(tiny_dataset, tmp_path, rank):
    """Of sixteen batches each, in the second: the other does not finish its own."""
    run, count = tmp_path / "run", tmp_path / "count"
    arguments = [*two(tiny_dataset, run), "--val_tokens", "1024"]
    setups = (
        (poison.small_evaluations, 32),
        (poison.slow_evaluations, 0.5),
        (poison.at_forward, 2, signal.SIGTERM, False, str(count), rank),
    )
    ranks = call_ranks(2, *arguments, cwd=tmp_path, setup=poison.all_of, args=setups)
    assert [r.code for r in ranks] == [75, 75], ranks[0].err + ranks[1].err
    assert not list(read_json_lines(run / "evals.jsonl")) and count.stat().st_size < 16
    assert_stopped(run, ranks[0].err + ranks[1].err, step=5)


@pytest.mark.exhaustive
def test_s11_a_signal_to_torchrun_saves_one_step_of_all(tiny_dataset, tmp_path):
    """torchrun passes it on, and ends with 1 whatever its workers say: STATUS.json tells."""
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*torchrun, "--nproc_per_node=2", "-m", "outpace", *two(tiny_dataset, run)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and logged(run) < 3 and process.poll() is None:
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert_stopped(run, "")
    assert "error[" not in err
    assert not psutil.wait_procs(workers, timeout=30)[1], "nobody is left"
