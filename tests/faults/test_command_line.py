# ruff: noqa: F811  (fixtures are imported, and then named as arguments)
"""The command line, its surroundings and its read-only commands, under every fault that a user, a
folder or a machine can cause: one line, the exit code, nothing changed that should not be."""

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.conftest import done, finished, folder, refused, run, tiny  # noqa: F401 (fixtures)
from cli.helpers import TRAIN, flip_bit, tree
from conftest import ROOT, TINY, write_corpus
from fuzz_flags import COMMANDS as SCHEMAS
from fuzz_flags import bad_flags
from harness import (
    Child,
    Fault,
    assert_nothing_lost,
    assert_steps_stand_once,
    call,
    events,
    logged,
    start,
    status,
)

from outpace.checkpoint import store
from outpace.cli.main import COMMANDS
from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.sources.files import FilesSource

# U1: numbers that cannot be.

BAD = list(bad_flags())
FLAGS = sorted({(argv[0], name) for name, argv in BAD})


def refuse_all(run, folder, cases):
    for name, argv in cases:
        result = run(*argv)
        assert result.code == 2, (argv, result.err)
        assert f"--{name}" in result.err, argv
        assert "error[BAD-VALUE]: " in result.err or "error[FLAGS]: " in result.err, argv
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("command", "flag"), FLAGS, ids=lambda x: x)
def test_u1_a_number_that_cannot_be_is_refused_and_named(command, flag, run, folder):
    """A third of the values; another third for the next flag, so that every value is tried."""
    cases = [(name, argv) for name, argv in BAD if (argv[0], name) == (command, flag)]
    refuse_all(run, folder, cases[FLAGS.index((command, flag)) % 3 :: 3])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("command", "flag"), FLAGS, ids=lambda x: x)
def test_u1_every_number_that_cannot_be_is_refused_and_named(command, flag, run, folder):
    refuse_all(run, folder, [c for c in BAD if (c[1][0], c[0]) == (command, flag)])


def test_u1_the_table_has_every_command_that_takes_a_number_and_500_values():
    assert len(BAD) >= 500
    assert len(FLAGS) > 45
    takers = {schema[0][0] for schema in SCHEMAS}
    assert takers | {"plan"} == _commands_with_numbers()


def _commands_with_numbers() -> set[str]:
    """By their help pages, which show INT or FLOAT for a number."""
    found = set()
    for command in COMMANDS.names():
        parts = {"bench": ["memory", "compare"], "data": ["info", "export"]}.get(command, [""])
        pages = [[command, part] if part else [command] for part in parts]
        for page in pages:
            out = subprocess.run(
                [sys.executable, "-m", "outpace", *page, "--help"],
                cwd=ROOT, capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            if re.search(r"--\w+ [^\n]*\b(INT|FLOAT)\b", out):
                found.add(command)
    return found


def test_u1_digits_that_are_not_ascii_are_text_where_text_is_asked_for(run, done):
    argv = ["sample", "run", "--prompt", "１２", "--max_new_tokens", "2"]
    assert run(*argv).out.startswith("１２")


# U2: flags that cannot be, or not together.

POSITIONAL = {"prepare": ["files"], "evaluate": ["x"], "sample": ["x"], "convert": ["x", "y"],
              "prove-resume": ["x"], "replay": ["x", "y"],
              "status": ["x"], "verify": ["x"], "report": ["x"], "bench": ["memory"],
              "data": ["info", "x"], "verdict": ["x"], "contamination": ["x"]}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS.names())
def test_u2_an_unknown_flag_is_refused(command, refused):
    argv = [command, *POSITIONAL.get(command, [])]
    assert "--frobnicate" in refused(2, "FLAGS", *argv, "--frobnicate", "3").err


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["train", "--max_stps", "3"], "--max_steps"),
        (["train", "--modelsize", "124M"], "--model_size"),
        (["train", "--grad_accumulation_steps", "8"], "--gradient_accumulation_steps"),
        (["train", "--no_flash_attention"], "--no_use_flash_attention"),
        (["sample", "x", "--max_tokens", "3"], "--max_new_tokens"),
        (["evaluate", "x", "--task", "loss"], "--tasks"),
    ],
)
def test_u2_a_mistyped_flag_names_the_one_that_was_meant(argv, meant, refused):
    assert meant in refused(2, "FLAGS", *argv).err


@pytest.mark.parametrize(
    ("argv", "name", "meant"),
    [
        (["trian"], "UNKNOWN-COMMAND", "train"),
        (["eval"], "UNKNOWN-COMMAND", "evaluate"),
        (["bench", "memry"], "UNKNOWN-BENCHMARK", "memory"),
        (["prepare", "file"], "UNKNOWN-SOURCE", "files"),
        (["prepare", "pydoc"], "UNKNOWN-SOURCE", "pydocs"),
        (["evaluate", "x", "--tasks", "loss,helaswag"], "UNKNOWN-TASK", "hellaswag"),
        (["train", "--model_size", "125M"], "MODEL-SIZE", "124M"),
        (["train", "--recipe", "quickstat"], "RECIPE", "quickstart"),
    ],
)
def test_u2_an_unknown_name_names_the_nearest_and_what_there_is(argv, name, meant, refused):
    error = refused(2, name, *argv).error
    assert f"(did you mean {meant}?)" in error
    assert "do: " in error


@pytest.mark.parametrize("command", ["evaluate", "sample", "convert", "status", "verify"])
def test_u2_a_missing_positional_argument_is_refused(command, refused):
    refused(2, "FLAGS", command)


@pytest.mark.parametrize(
    "argv",
    [
        ["--use_flash_attention", "--attention_backend", "reference"],
        ["--attention_backend", "reference"],
    ],
)
def test_u2_flash_attention_and_the_reference_exclude_each_other(argv, refused):
    error = refused(2, "BAD-VALUE", "train", *argv).error
    assert "T x T" in error
    assert "--no_use_flash_attention" in error


@pytest.mark.parametrize("name", ["run_dir", "dataset", "resume", "hellaswag_path"])
def test_u2_an_empty_path_is_not_taken_for_the_current_folder(name, refused):
    assert f"--{name} is empty" in refused(2, "BAD-VALUE", "train", f"--{name}=").error


def test_u2_what_is_missing_is_told_by_name_alone(refused):
    error = refused(2, "FLAGS", "data", "export", "x").error
    assert "outpace data export needs OUTPUT and --to {nanogpt,llmc,megatron," in error
    assert len(error) < 200
    assert "outpace verdict needs MODEL;" in refused(2, "FLAGS", "verdict").error


@pytest.mark.parametrize("value", ["True", "1"])
def test_u2_a_switch_that_is_given_a_value_says_how_it_is_written(value, refused):
    error = refused(2, "FLAGS", *TRAIN, "--use_flash_attention", value).error
    assert "a switch takes no value" in error and "--no_NAME" in error


def test_u2_a_flag_without_its_value_and_a_stray_word_are_refused(refused):
    refused(2, "FLAGS", "train", "--max_steps")
    refused(2, "FLAGS", "train", "tiny")
    refused(2, "FLAGS", "train", "--recipe")
    refused(2, "FLAGS", "train", "--use_flash_attention=False")


def test_u2_a_list_in_two_parts_is_refused(refused):
    """Of which the last alone would count: half the text, say, and nothing said."""
    for argv, name in (
        (("prepare", "files", "--input", "a.txt", "--input", "b.txt"), "input"),
        (("prepare", "files", "--val-input=a.txt", "--val_input", "b", "c"), "val_input"),
        (("sample", "runs/x", "--stop", "a", "--seed", "1", "--stop", "b"), "stop"),
    ):
        said = refused(2, "FLAGS", *argv).error
        assert f"--{name} is there twice; do: --{name} ONE ANOTHER" in said


def test_u2_an_invalid_choice_names_the_choices(refused):
    assert "bf16" in refused(2, "FLAGS", "train", "--mixed_precision", "bfloat16").err


def test_u2_an_evaluation_or_measurement_of_nothing_is_refused(refused):
    refused(2, "UNKNOWN-TASK", "evaluate", "x", "--tasks", "")
    refused(2, "BAD-VALUE", "bench", "memory", "--lengths")


def test_u2_prepare_files_needs_an_input_and_pydocs_takes_none(refused):
    assert "--input" in refused(2, "NO-INPUT", "prepare", "files").error
    refused(2, "BAD-VALUE", "prepare", "pydocs", "--input", "x")


def test_u2_reports_and_comparisons_say_what_they_miss(refused):
    refused(2, "NO-RUN", "report")
    refused(2, "NO-PEER", "bench", "compare")


def test_u2_a_batch_that_does_not_divide_shows_the_arithmetic(refused, tiny):
    argv = ["--gradient_accumulation_steps", "auto", "--tokens_per_step", "100"]
    assert "64 or 128" in refused(2, "BATCH", *TRAIN, *argv).error


def test_u2_heads_that_do_not_divide_the_channels_are_refused(refused):
    error = refused(2, "BAD-VALUE", "train", "--n_head", "5", "--n_embd", "32").error
    assert "--n_head 5 does not divide --n_embd 32" in error


# U3: what is not there.


def test_u3_a_missing_dataset_says_how_to_make_one(refused):
    error = refused(3, "NO-DATASET", *TRAIN, "--dataset", "nothing").error
    assert "outpace prepare files" in error


def test_u3_an_empty_dataset_folder_is_refused(refused, folder):
    (folder / "data" / "empty").mkdir(parents=True)
    refused(3, "NO-DATASET", *TRAIN, "--dataset", "empty")


class Blocked:
    """Finds nothing of the packages that are not installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def without(*packages: str) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] in packages]:
        del sys.modules[name]
    sys.meta_path.insert(0, Blocked(packages))


INTEROP = "pip install 'outpace[interop]'"


@pytest.mark.parametrize(
    ("package", "argv", "command"),
    [
        (
            "transformers",
            ["convert", "run", "out", "--to", "outpace"],
            "pip install 'outpace[interop]'",
        ),
        ("transformers", ["bench", "generate"], INTEROP),
        ("huggingface_hub", ["sample", "hf:gpt2"], "make install"),
    ],
)
def test_u3_a_missing_package_names_the_command_that_installs_it(package, argv, command, done):
    child = call(*argv, cwd=done.parent, setup=without, args=(package,))
    assert child.code == 2, child.err
    assert command in child.err
    assert "Traceback" not in child.err
    assert not (done.parent / "out").exists()


def test_u3_training_needs_no_optional_package(tiny_dataset, tmp_path):
    child = train(tiny_dataset, tmp_path, setup=without, args=("transformers", "huggingface_hub"))
    assert child.wait() == 0, child.err


# U4, U5: who holds a run folder.


def train(dataset: Path, folder: Path, *more: str, steps: int = 4, **options) -> Child:
    argv = ["train", *TINY, "--dataset", dataset, "--max_steps", str(steps)]
    if "--run_dir" not in more:
        argv += ["--run_dir", folder / "r"]
    return start(*argv, *more, cwd=folder, **options)


def test_u4_a_second_run_in_the_same_folder_is_refused_and_the_first_unaffected(
    tiny_dataset, tmp_path
):
    run, steps = tmp_path / "r", 400
    first = train(tiny_dataset, tmp_path, "--save_every_steps", "20", steps=steps)
    first.until_step(run, 25)
    second = train(tiny_dataset, tmp_path, "--save_every_steps", "20", steps=steps)
    assert second.wait() == 8, second.err
    line = second.err.splitlines()[-1]
    assert line.startswith("error[RUN-IN-USE]: ")
    assert f"(pid {first.pid} on {socket.gethostname()})" in line
    assert first.wait() == 0, first.err
    assert_steps_stand_once(run)
    assert_nothing_lost(run)
    assert len(events(run, "started")) == 1


def wait_before_the_lock(here: str) -> None:
    """Say so, and go on when told to."""
    create = RunFolder.create

    def wait_and_create(self: RunFolder) -> None:
        Path(here, "waiting").touch()
        while not Path(here, "go on").exists():
            time.sleep(0.01)
        create(self)

    RunFolder.create = wait_and_create  # type: ignore[method-assign]


def test_a_run_that_another_process_trained_meanwhile_is_looked_at_again(tiny_dataset, tmp_path):
    """Between the check of its settings and its lock lies the wait for the other processes."""
    run, late = tmp_path / "r", ("--lr", "0.5")
    second = train(tiny_dataset, tmp_path, *late, setup=wait_before_the_lock, args=(str(tmp_path),))
    second.until((tmp_path / "waiting").exists)
    assert train(tiny_dataset, tmp_path, steps=2).wait() == 0
    before = tree(run)
    (tmp_path / "go on").touch()
    assert second.wait() == 8, second.err
    assert "has trained in" in second.err.splitlines()[-1]
    assert tree(run) == before
    assert train(tiny_dataset, tmp_path, *late).wait() == 4, "the settings are refused now"


def test_u5_after_kill_9_the_lock_is_free_and_the_status_says_killed(tiny_dataset, tmp_path):
    run = tmp_path / "r"
    first = train(tiny_dataset, tmp_path, "--save_every_steps", "2", steps=4000)
    first.until(lambda: bool(events(run, "checkpoint")))
    first.kill()
    assert (run / ".lock").exists()
    told = call("status", "r", cwd=tmp_path)
    assert told.out.startswith("r: interrupted, step ")
    assert f"process {first.pid} was killed" in told.out
    again = train(tiny_dataset, tmp_path, "--save_every_steps", "2", "--max_hours", "1e-9",
                  steps=4000)  # fmt: skip
    assert again.wait() == 75, again.err
    assert "resuming from" in again.out


def test_u5_a_reused_pid_and_another_boot_do_not_hold_a_run(run, done):
    record = status(done) | {"state": "running", "pid": os.getpid(), "boot_id": "of-another-start"}
    (done / "STATUS.json").write_text(json.dumps(record))
    out = run("status", "run").out
    assert out.startswith("run: interrupted")
    assert "the machine was restarted" in out
    assert run(*TRAIN, "--run_dir", "run", "--max_steps", "4").code == 0


def without_locks(number: int) -> None:
    """A file system whose flock fails, as that of some network mounts does."""

    def flock(_fd: int, _how: int) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = flock


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get
)
def test_u5_without_locks_a_run_starts_with_a_clear_warning(number, tiny_dataset, tmp_path):
    child = train(tiny_dataset, tmp_path, setup=without_locks, args=(number,))
    assert child.wait() == 0, child.err
    assert "[NO-LOCK]" in child.err
    told = call("status", "r", cwd=tmp_path, setup=without_locks, args=(number,))
    assert told.out.startswith("r: finished"), told.err


# U6: logs that cannot be written.


def test_u6_a_log_that_is_a_folder_is_warned_of_and_training_goes_on(tiny_dataset, tmp_path):
    run = tmp_path / "r"
    (run / "metrics.jsonl").mkdir(parents=True)
    child = train(tiny_dataset, tmp_path)
    assert child.wait() == 0, child.err
    assert "metrics.jsonl is not written" in child.err
    assert status(run)["state"] == "finished"
    assert_nothing_lost(run)


def test_u6_a_log_that_was_deleted_or_rotated_is_begun_again(tiny_dataset, tmp_path):
    run = tmp_path / "r"
    child = train(tiny_dataset, tmp_path, steps=300)
    child.until_step(run, 5)
    (run / "metrics.jsonl").rename(run / "metrics.jsonl.1")
    assert child.wait() == 0, child.err
    rest = [r["step"] for name in ("metrics.jsonl.1", "metrics.jsonl")
            for r in read_json_lines(run / name)]  # fmt: skip
    assert rest == list(range(1, 301))


def test_u6_a_log_that_cannot_be_appended_to_is_warned_of_once(tiny_dataset, tmp_path):
    fault = Fault("write", "EIO", at=0, path="metrics.jsonl")
    child = train(tiny_dataset, tmp_path, faults=[fault])
    assert child.wait() == 0, child.err
    assert child.err.count("is not written") == 1
    assert_nothing_lost(tmp_path / "r")


# U7: surroundings.


def surround(change: str, folder: str) -> None:
    """Change what a shell gives a process."""
    if change == "no HOME":
        del os.environ["HOME"]
    elif change == "read-only HOME":
        os.environ["HOME"] = "/proc"  # where not even root can write
    elif change == "no TERM":
        os.environ.pop("TERM", None)
    elif change == "no standard input":
        os.close(0)
    elif change == "cwd deleted":
        Path(folder).mkdir()
        os.chdir(folder)
        Path(folder).rmdir()


@pytest.mark.parametrize("change", ["no HOME", "read-only HOME", "no TERM", "no standard input"])
def test_u7_training_works_whatever_the_shell_gives(change, tiny_dataset, tmp_path):
    gone = str(tmp_path / "gone")
    child = train(tiny_dataset, tmp_path, setup=surround, args=(change, gone))
    assert child.wait() == 0, child.err
    assert "Traceback" not in child.err
    assert status(tmp_path / "r")["state"] == "finished"
    for argv in (["status", tmp_path / "r"], ["verify", tmp_path / "r"], ["--help"]):
        told = call(*argv, cwd=tmp_path, setup=surround, args=(change, gone))
        assert (told.code, told.err) == (0, ""), (argv, told.err)


def test_u7_a_working_folder_that_was_deleted_is_refused_in_one_line(tiny_dataset, tmp_path):
    gone = ("cwd deleted", str(tmp_path / "gone"))
    child = train(tiny_dataset, tmp_path, setup=surround, args=gone)
    assert child.wait() == 2
    assert child.err.startswith("error[NO-WORKING-FOLDER]: ")
    assert child.err.count("\n") == 1
    assert not (tmp_path / "r").exists()
    assert call("--help", cwd=tmp_path, setup=surround, args=gone).code == 0


# U8: a port in use.


def test_u8_a_rendezvous_port_in_use_is_named(tiny_dataset, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        child = train(tiny_dataset, tmp_path, env=ranks | where)
        assert child.wait() == 9, child.err
    line = child.err.splitlines()[-1]
    assert line.startswith("error[")
    assert port in line
    assert "Traceback" not in child.err
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_u8_torchrun_itself_names_the_port_in_use(tiny_dataset, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        argv = ["--master_port", port, "-m", "outpace", "train", *TINY, "--run_dir", "r"]
        finished = subprocess.run(
            [*torchrun, *argv, "--dataset", str(tiny_dataset), "--max_steps", "2"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert finished.returncode != 0
    assert port in finished.stderr
    assert not (tmp_path / "r").exists()


# U9: nothing goes on any more.


def test_u9_a_step_that_hangs_leaves_its_stacks_and_exit_code_9(tiny_dataset, tmp_path):
    run = tmp_path / "r"
    stuck = Fault("write", "sleep:600", at=3, path="metrics.jsonl")
    child = train(tiny_dataset, tmp_path, "--watchdog_minutes", "0.05", faults=[stuck])
    assert child.wait(60) == 9, child.err
    assert child.err.splitlines()[-1].startswith("error[STUCK]: ")
    (stacks, *_) = run.glob("stacks-*.txt")
    assert "append_json_line" in stacks.read_text()
    assert (status(run)["state"], status(run)["code"]) == ("failed", 9)
    assert_nothing_lost(run)


# U10: read-only commands on every kind of folder.


@pytest.fixture
def places(done) -> Path:
    """Folders that are no run, half of one, somebody else's, and one that is whole."""
    base = done.parent
    (base / "empty").mkdir()
    half = base / "half" / "checkpoints" / ".tmp-3-0123abcd"
    half.mkdir(parents=True)
    shutil.copy(done / "checkpoints" / "step-00000003" / store.MODEL, half)
    (base / "half" / ".lock").touch()
    begun = Path(shutil.copytree(base / "half", base / "begun"))
    shutil.copy(done / "config.toml", begun)
    shutil.copy(done / "plan.json", begun)
    foreign = base / "foreign"
    (foreign / "checkpoints" / "step-10 (copy)").mkdir(parents=True)
    (foreign / "checkpoints" / "epoch=3.ckpt").write_bytes(b"x")
    (foreign / "config.json").write_text('{"model_type": "llama"}')
    return base


@pytest.mark.parametrize("place", ["nothing", "empty", "half", "foreign", "begun", "run"])
@pytest.mark.parametrize("command", ["verify", "verify --deep", "status", "report", "doctor --run"])
def test_u10_reading_commands_answer_right_and_change_nothing(
    command, place, run, places, monkeypatch
):
    monkeypatch.setenv("PATH", "")  # the doctor's probe of a compiler would take seconds
    code = {"run": 0, "begun": 0}.get(place, 2)
    if (place, command.split()[0]) == ("begun", "verify"):
        code = 2
    more = ["--output", places.parent / f"{places.name}.html"] if command == "report" else []
    before = tree(places)
    result = run(*command.split(), place, *more)
    assert result.code == code, result.err
    assert result.err.count("error[") == (code > 0)
    if command == "status" and place == "begun":
        assert result.out.startswith("begun: interrupted")
    assert tree(places) == before


def test_u10_a_live_run_is_read_while_it_saves_and_forgets(run, tiny_dataset, folder):
    """Retention takes a checkpoint away at every save: that is not damage."""
    child = train(tiny_dataset, folder, "--save_every_steps", "1", steps=100_000)
    try:
        child.until_step(folder / "r", 4)
        said: list[int] = []
        deadline = time.monotonic() + 60
        while len(said) < 12 or (said[-1] == said[0] and time.monotonic() < deadline):
            assert run("verify", "r").code == 0
            state = json.loads(run("status", "r", "--json").out)
            assert (state["state"], state["held"], state["pid"]) == ("running", True, child.pid)
            assert state["last_record_age_s"] < 60
            said.append(state["last_logged_step"])
        assert said == sorted(said)
        assert said[-1] > said[0]
        assert "tokens per second" in run("status", "r").out
        assert run("report", "r", "--output", folder / "live.html").code == 0
        assert run("verify", "--deep", "r").code == 0
        assert child.code is None
        child.send(signal.SIGTERM)
        assert child.wait() == 75
    finally:
        child.kill()


@pytest.mark.parametrize("name", [store.MODEL, store.OPTIMIZER, store.STATE, store.MANIFEST])
def test_u10_damage_is_named_with_its_checkpoint_and_exit_code_4(name, refused, done):
    flip_bit(done / "checkpoints" / "step-00000002" / name)
    for argv in (["verify", "run"], ["verify", "--deep", "run"]):
        result = refused(4, "CKPT-BAD", *argv)
        assert "step-00000002" in result.error
        assert name in result.error or name in (store.MANIFEST, store.STATE)
        assert "step-00000003: whole" in result.out


def test_u10_a_checkpoint_that_was_acknowledged_but_is_not_there_is_damage(refused, done):
    shutil.rmtree(done / "checkpoints" / "step-00000003")
    assert "STATUS.json names it" in refused(4, "CKPT-BAD", "verify", "run").error


# U11: records that are damaged.


def test_u11_a_report_is_made_of_damaged_records_and_says_so(run, done):
    with open(done / "metrics.jsonl", "ab") as f:
        f.write(b'\xff\x00\x9f{"step": 4, "loss"\n[1, 2]\n{"step": 5, "loss": NaN}\n{"step": 6, "l')
    (done / "STATUS.json").write_bytes(b"\x00")
    result = run("report", "run", "--output", "page.html")
    assert result.code == 0, result.err
    page = Path("page.html").read_text()
    assert "STATUS.json is incomplete or damaged" in page


def test_u11_status_reads_only_the_end_of_ten_million_lines(run, done):
    """A sparse file of 2 GB stands for them: reading all of it would take its time and memory."""
    with open(done / "metrics.jsonl", "r+b") as f:
        f.seek(2 << 30)
        f.write(b'\n{"step": 7, "loss": 1.5}\n{"step": 8, "lo')
    state = json.loads(run("status", "run", "--json").out)
    assert (state["last_logged_step"], state["loss"]) == (7, 1.5)


# U12: HellaSwag's questions.

QUESTION = {"ind": 1, "ctx": "A", "endings": ["b", "c", "d", "e"], "label": 0}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A dataset of GPT-2's tokens."""
    base = tmp_path_factory.mktemp("words")
    write_corpus(base / "text", documents=60)
    argv = ["prepare", "files", "--input", "text", "--output", "data", "--val_fraction", "0.1"]
    assert call(*argv, cwd=base).code == 0
    return base / "data"


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"{", json.dumps(QUESTION).encode() + b"\n", b'{"ind": 1}\n'],
    ids=["empty", "binary", "cut", "short", "incomplete"],
)
def test_u12_questions_that_are_damaged_cost_their_score_and_not_the_run(
    content, words, run, folder
):
    (folder / "q.jsonl").write_bytes(content)
    argv = [*TRAIN, "--dataset", words, "--run_dir", "r", "--hellaswag_limit", "2"]
    result = run(*argv, "--hellaswag_path", "q.jsonl", "--hellaswag_every_steps", "2")
    assert result.code == 0, result.err
    assert "warning: [HELLASWAG] " in result.err
    failed = [r for r in read_json_lines(Path("r/evals.jsonl")) if "failed" in r]
    assert {(r["task"], r["step"]) for r in failed} >= {("hellaswag", 2), ("hellaswag", 3)}
    assert status(Path("r"))["state"] == "finished"
    scored = run("evaluate", "r", "--tasks", "hellaswag", "--hellaswag_path", "q.jsonl")
    assert scored.code == 3
    assert scored.error.startswith("error[HELLASWAG]: ")


# U13: the cache of compiled code.


@pytest.mark.exhaustive
@pytest.mark.parametrize("cache", ["junk", "a file", "read-only"])
def test_u13_a_bad_compile_cache_falls_back_with_a_warning(cache, tiny_dataset, tmp_path):
    place = tmp_path / "cache"
    if cache == "a file":
        place.write_text("x")
    elif cache == "read-only":
        place = Path("/proc/outpace-cache")  # where not even root can write
    env = {"TORCHINDUCTOR_CACHE_DIR": str(place)}
    argv = ["--compile", "on" if cache == "junk" else "auto"]
    if cache == "junk":
        assert train(tiny_dataset, tmp_path, *argv, env=env).wait(300) == 0
        shutil.rmtree(tmp_path / "r")
        for file in (p for p in place.rglob("*") if p.is_file()):
            file.write_bytes(b"\x00junk" * 20)
    child = train(tiny_dataset, tmp_path, *argv, env=env)
    assert child.wait(300) == 0, child.err
    assert "Traceback" not in child.err
    assert status(tmp_path / "r")["state"] == "finished"
    assert cache == "junk" or "compile" in child.err


@pytest.mark.exhaustive
@pytest.mark.parametrize("which", ["first", "last"])
def test_u13_compiled_code_that_a_kill_cut_short_is_compiled_again(which, tiny_dataset, tmp_path):
    place = tmp_path / "cache"
    env = {"TORCHINDUCTOR_CACHE_DIR": str(place)}
    assert train(tiny_dataset, tmp_path, "--compile", "on", env=env).wait(300) == 0
    libraries = sorted(place.rglob("*.so"), key=lambda library: library.stat().st_mtime_ns)
    cut = libraries[0 if which == "first" else -1]
    whole = cut.stat().st_size
    os.truncate(cut, whole // 3)
    shutil.rmtree(tmp_path / "r")
    child = train(tiny_dataset, tmp_path, "--compile", "on", env=env)
    assert child.wait(300) == 0, child.err
    assert cut.stat().st_size == whole
    assert status(tmp_path / "r")["state"] == "finished"


# D10, D11, D12: paths, TMPDIR, descriptors.

ODD = [
    "a b",
    "naïve-模型-😀",
    "line\nbreak",
    "-dash",
    "[glob]*",
    "100%s%d",
    "'\"$(x)`;&",
    "n" * 255,
]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_d10_odd_names_of_folders_work(name, run, tiny, folder):
    place = f"--run_dir=runs/{name}/{name}"
    assert run(*TRAIN, place, "--max_steps", "1").code == 0
    root = folder / "runs" / name / name
    assert (root / "report.html").is_file()
    again = run(*TRAIN, place, "--max_steps", "1")
    assert (again.code, again.err.count("error")) == (0, 0)
    assert run("status", root).code == 0
    assert run("verify", "--deep", root).code == 0
    assert sorted(p.name for p in folder.iterdir()) == ["data", "runs"]


def test_d10_a_name_that_is_not_utf_8_is_refused_before_anything_is_written(refused, tiny):
    name = os.fsdecode(b"r\xff\xfe")
    assert "--run_dir is not UTF-8" in refused(2, "BAD-VALUE", *TRAIN, "--run_dir", name).error
    refused(2, "NOT-A-RUN", "status", name)
    refused(2, "NOTHING-TO-VERIFY", "verify", name)


def test_d10_a_name_that_is_too_long_is_refused(refused, tiny):
    assert "File name too long" in refused(5, "STORAGE", *TRAIN, "--run_dir", "n" * 256).error


def test_d10_a_run_folder_behind_a_link_works_and_the_link_stays(run, tiny, folder):
    (folder / "big-disk").mkdir()
    (folder / "link").symlink_to("big-disk")
    assert run(*TRAIN, "--run_dir", "link").code == 0
    assert (folder / "link").is_symlink()
    assert run("verify", "--deep", "link").code == 0
    assert len(store.paths(RunFolder(folder / "big-disk").checkpoints)) == 2


def test_d10_a_path_that_is_a_file_is_refused(refused, tiny, folder):
    (folder / "file").write_text("x")
    refused(5, "RUN-DIR", *TRAIN, "--run_dir", "file/run")
    refused(5, "RUN-DIR", *TRAIN, "--run_dir", "file")
    refused(2, "NOT-A-RUN", "status", "file")
    refused(2, "NOTHING-TO-VERIFY", "verify", "file")


def another_device(beside: Path) -> Iterator[Path]:
    """A folder on another file system than `beside`, or a skip."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == beside.stat().st_dev:
        pytest.skip("there is no second file system")
    own = place / f"outpace-test-{os.getpid()}"
    own.mkdir()
    yield own
    shutil.rmtree(own)


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[Path]:
    yield from another_device(tmp_path)


def test_d11_tmpdir_on_another_device_is_no_obstacle(elsewhere, tiny_dataset, tmp_path):
    write_corpus(tmp_path / "text", documents=5)
    env = {"TMPDIR": str(elsewhere)}
    argv = ["prepare", "files", "--input", "text", "--output", "d", "--tokenizer", "bytes"]
    assert call(*argv, cwd=tmp_path, env=env).code == 0
    child = train(tiny_dataset, tmp_path, env=env)
    assert child.wait() == 0, child.err
    assert_nothing_lost(tmp_path / "r")
    ours = [p.name for p in elsewhere.iterdir() if not p.name.startswith("torchinductor")]
    assert not ours, "what a run writes is in its folder"


def test_d11_a_tmpdir_that_is_not_there_is_no_obstacle(tiny_dataset, tmp_path):
    child = train(tiny_dataset, tmp_path, env={"TMPDIR": "/no/such/folder"})
    assert child.wait() == 0, child.err


def test_d12_few_descriptors_are_enough_for_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # hundreds of them are not the point here
    source = FilesSource([str(write_corpus(tmp_path / "text", documents=130))])
    prepare(source, tmp_path / "d", PrepareOptions("bytes", val_fraction=0.1, shard_tokens=500))
    assert len(list((tmp_path / "d").glob("train_*.bin"))) > 100
    child = train(tmp_path / "d", tmp_path, "--micro_batch_size", "64", steps=8,
                  limits={resource.RLIMIT_NOFILE: 64})  # fmt: skip
    assert child.wait() == 0, child.err
    assert logged(tmp_path / "r") == 8
