"""A run goes back to where it would have gone, whatever happened to it on the way there: a stop, a
kill, an evaluation, another length."""

import signal
from pathlib import Path

import poison
import pytest
from conftest import final_hash
from harness import Fault, call, events, rollbacks, start
from trials_resume import command, hashes, train

from outpace.checkpoint import store
from outpace.core.files import read_json_lines

# Asked to stop, or to save, on the way.


@pytest.fixture(params=[signal.SIGTERM, signal.SIGUSR2])
def twins(request, tiny_dataset, tmp_path):
    """Trains over the same bad data twice, the second time asked to stop or to save behind a step,
    and started again where it stopped; the two run folders."""

    def train_both(bad: tuple[int, ...], asked_at: int, *extra: str, steps: int) -> list[Path]:
        poisoned = (poison.loss_of_data, bad)
        asked = (poison.signalled, asked_at, request.param)

        def run(name: str, *faults: tuple[object, ...]) -> int:
            arguments = command(tiny_dataset, tmp_path / name, *extra, steps=steps)
            return call(*arguments, cwd=tmp_path, setup=poison.all_of, args=faults).code

        assert run("straight", poisoned) == 0
        stops = request.param == signal.SIGTERM
        assert run("asked", poisoned, asked) == (75 if stops else 0)
        assert not stops or run("asked", poisoned) == 0
        return [tmp_path / "straight", tmp_path / "asked"]

    return train_both


def test_r12_a_rollback_after_a_stop_goes_where_it_would_have_gone(twins):
    """The checkpoint that a stop or a request made is none to roll back to, and pushes none out.
    Nor is that of step 28, which nine good steps followed: one too few."""
    extra = ("--save_every_steps", "7", "--keep_checkpoints", "3", "--max_skipped_steps", "2")
    straight, asked = twins((37, 38), 23, *extra, steps=50)
    for run in (straight, asked):
        assert [(e["step"], e["path"]) for e in events(run, "rollback")] == [(39, "step-00000021")]
    assert final_hash(straight) == final_hash(asked)


def test_r12_what_is_saved_at_the_end_only_is_no_place_to_go_back_to_before(twins):
    extra = ("--save_every_steps", "0", "--max_skipped_steps", "2")
    straight, asked = twins((29, 30), 15, *extra, steps=40)
    assert rollbacks(straight) == rollbacks(asked) == [0]
    assert final_hash(straight) == final_hash(asked)


# Another length, a kill, evaluations.


def test_r12_a_longer_run_rolls_back_to_what_the_shorter_one_saved(tiny_dataset, tmp_path):
    """An interval of `auto` is another one then, and the checkpoints are none of its multiples."""
    run = tmp_path / "run"
    extra = ("--schedule", "constant", "--warmup_steps", "2", "--save_every_steps", "auto")
    extra += ("--max_skipped_steps", "2", "--keep_checkpoints", "2", "--no_keep_best")
    train(tiny_dataset, run, *extra, steps=120)
    assert [store.step_of(p) for p in store.paths(run / "checkpoints")] == [108, 120]
    longer = command(tiny_dataset, run, *extra, steps=170)
    done = call(*longer, cwd=tmp_path, setup=poison.loss_of_data, args=((121, 122),))
    assert done.code == 0, done.err
    assert [e["path"] for e in events(run, "rollback")] == ["step-00000108"]


def test_r12_a_rollback_goes_where_it_would_have_without_a_kill(tiny_dataset, tmp_path):
    """Killed between the commit of a checkpoint and the removal of an older one."""
    bad = {"setup": poison.loss_of_data, "args": ((20, 21, 22, 23, 24),)}
    extra = ("--save_every_steps", "5", "--max_skipped_steps", "3", "--keep_checkpoints", "2")
    extra += ("--no_keep_best",)
    straight = command(tiny_dataset, tmp_path / "straight", *extra, steps=40)
    assert call(*straight, cwd=tmp_path, **bad).code == 0
    run = tmp_path / "run"
    kill = Fault("rename", "kill", 1, "checkpoints/step-00000010")
    killed = command(tiny_dataset, run, *extra, steps=40)
    assert call(*killed, cwd=tmp_path, faults=[kill], **bad).code == -signal.SIGKILL
    assert len(store.paths(run / "checkpoints")) == 3, "the premise of this test"
    assert call(*killed, cwd=tmp_path, **bad).code == 0
    assert rollbacks(run) == rollbacks(tmp_path / "straight") != []
    assert final_hash(run) == final_hash(tmp_path / "straight")


TWICE = (
    "--save_every_steps", "10", "--max_skipped_steps", "3", "--keep_checkpoints", "2",
    "--lr", "0.5", "--warmup_steps", "60", "--schedule", "constant", "--log_every_steps", "1000",
)  # fmt: skip
TWICE_BAD = {"setup": poison.loss_of_data, "args": ((54, 55, 56, 61, 62, 63),)}
"""The loss is lowest early on. Bad data at two places leads to a second rollback before it has two
checkpoints behind the first."""


@pytest.fixture(scope="module")
def twice(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twice")
    extra = (*TWICE, "--no_keep_best", "--eval_every_steps", "0")
    arguments = command(tiny_dataset, folder / "run", *extra, steps=80)
    assert call(*arguments, cwd=folder, **TWICE_BAD).code == 0
    assert rollbacks(folder / "run") == [40, 40]
    return folder / "run"


def test_r12_a_second_rollback_goes_where_it_would_have_without_a_kill(
    twice, tiny_dataset, tmp_path
):
    """Killed before a checkpoint is removed that the first rollback does not count."""
    run = tmp_path / "run"
    extra = (*TWICE, "--no_keep_best", "--eval_every_steps", "0")
    arguments = command(tiny_dataset, run, *extra, steps=80)
    kill = Fault("rename", "kill", 1, "checkpoints/step-00000030")
    assert call(*arguments, cwd=tmp_path, faults=[kill], **TWICE_BAD).code == -signal.SIGKILL
    assert [store.step_of(p) for p in store.paths(run / "checkpoints")] == [30, 40, 50]
    assert call(*arguments, cwd=tmp_path, **TWICE_BAD).code == 0
    assert rollbacks(run) == [40, 40] and final_hash(run) == final_hash(twice)


def test_r12_a_second_rollback_goes_where_it_would_have_without_evaluations(
    twice, tiny_dataset, tmp_path
):
    """The best checkpoint is there, old enough, and no place to go back to."""
    run = tmp_path / "run"
    extra = (*TWICE, "--keep_best", "--eval_every_steps", "10")
    arguments = command(tiny_dataset, run, *extra, steps=80)
    child = start(*arguments, cwd=tmp_path, **TWICE_BAD)
    child.until(lambda: len(rollbacks(run)) == 2)
    child.kill()
    losses = {r["step"]: r["loss"] for r in read_json_lines(run / "evals.jsonl")}
    best = min((step for step in losses if step), key=lambda step: losses[step])
    assert best < 40 and best in hashes(run), "the premise of this test"
    assert call(*arguments, cwd=tmp_path, **TWICE_BAD).code == 0
    assert set(rollbacks(run)) == {40} and final_hash(run) == final_hash(twice)
