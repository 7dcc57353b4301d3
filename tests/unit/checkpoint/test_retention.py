"""Which checkpoints stay: decided from names, manifests and losses alone."""

import errno
import os
from pathlib import Path

import pytest
import torch

from outpace.checkpoint import store
from outpace.checkpoint.retention import LEAST, Retention, is_ancestor, is_due


def save(folder: Path, *steps: int, run: str = "us", lineage: int = 0, every: int = 0) -> None:
    for step in steps:
        origin = store.Origin(run=run, lineage=lineage, due=every > 0 and step % every == 0)
        store.save(folder, step, {store.MODEL: {"w": torch.tensor([step])}}, {}, origin)


def names(folder: Path) -> list[str]:
    return [p.name.removeprefix("step-").lstrip("0") for p in store.paths(folder)]


@pytest.mark.parametrize(("last", "left"), [(2, ["4", "5"]), (3, ["3", "4", "5"])])
def test_the_newest_stay(tmp_path, last, left):
    save(tmp_path, 1, 2, 3, 4, 5)
    gone = Retention(last=last).prune(tmp_path, run="us")
    assert names(tmp_path) == left and len(gone) == 5 - last
    assert Retention(last=last).prune(tmp_path, run="us") == []


def test_fewer_than_two_are_never_asked_for(tmp_path):
    save(tmp_path, 1, 2, 3)
    Retention(last=0).prune(tmp_path, run="us")
    assert len(names(tmp_path)) == LEAST == 2


def test_what_a_stop_saved_takes_no_place_of_what_was_due(tmp_path):
    keep = Retention(last=2, best=True)
    save(tmp_path, 10, 20, 23, 25, 30, 31, every=10)
    keep.prune(tmp_path, run="us", losses={10: 3.0, 25: 1.0})
    assert names(tmp_path) == ["10", "20", "30", "31"], "the newest is where the run goes on"
    save(tmp_path, 40, every=10)
    keep.prune(tmp_path, run="us")
    assert names(tmp_path) == ["30", "40"]


def test_where_few_were_due_the_newest_of_all_stay(tmp_path):
    save(tmp_path, 3, 5, 7, every=10)
    Retention(last=2).prune(tmp_path, run="us")
    assert names(tmp_path) == ["5", "7"]


def test_milestones_and_the_best_stay(tmp_path):
    save(tmp_path, *range(1, 13), every=1)
    losses = {3: 2.0, 7: 1.0, 11: 3.0, 99: 0.1}
    keep = Retention(milestone_every_steps=5, best=True)
    keep.prune(tmp_path, run="us", losses=losses)
    assert names(tmp_path) == ["5", "7", "10", "11", "12"]


def test_without_losses_there_is_no_best(tmp_path):
    save(tmp_path, 1, 2, 3)
    Retention(best=True).prune(tmp_path, run="us")
    assert names(tmp_path) == ["2", "3"]


def test_nothing_goes_while_the_newest_is_damaged(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    (store.paths(tmp_path)[-1] / store.STATE).unlink()
    assert Retention().prune(tmp_path, run="us") == [] and len(names(tmp_path)) == 4


def test_a_damaged_one_does_not_count_as_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    (store.paths(tmp_path)[2] / store.STATE).unlink()
    Retention().prune(tmp_path, run="us")
    assert names(tmp_path) == ["2", "4"]


def test_those_of_another_run_neither_count_nor_go(tmp_path):
    save(tmp_path, 1, 2, 3)
    save(tmp_path, 50, 51, run="them")
    Retention().prune(tmp_path, run="us")
    assert names(tmp_path) == ["2", "3", "50", "51"]


def test_those_that_a_rollback_left_behind_go_and_do_not_count(tmp_path):
    """The run went to step 50, back to 20, and on to 21 and 22."""
    save(tmp_path, 20, 30, 40, 50)
    save(tmp_path, 21, 22, lineage=1)
    Retention().prune(tmp_path, run="us", left_at=[20])
    assert names(tmp_path) == ["21-r1", "22-r1"]


def test_what_lies_before_a_rollback_counts(tmp_path):
    save(tmp_path, 10, 20, 30)
    save(tmp_path, 21, lineage=1)
    Retention().prune(tmp_path, run="us", left_at=[20])
    assert names(tmp_path) == ["20", "21-r1"]


def test_one_that_cannot_be_deleted_is_warned_of_and_the_others_go(tmp_path, monkeypatch, capsys):
    save(tmp_path, 1, 2, 3, 4)
    real = store.os.rename

    def rename(source, target):
        if Path(source).name == "step-00000001":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(source, target)

    monkeypatch.setattr(store.os, "rename", rename)
    gone = Retention().prune(tmp_path, run="us")
    assert [p.name for p in gone] == ["step-00000002"] and names(tmp_path) == ["1", "3", "4"]
    assert "[NOT-REMOVED]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "left_at", "expected"),
    [
        ("step-00000005", [], True),
        ("step-00000005", [5], True),
        ("step-00000006", [5], False),
        ("step-00000006-r1", [5], True),
        ("step-00000006-r1", [5, 4], False),
        ("step-00000004-r1", [5, 4], True),
        ("step-00000005", [5, 4], False),
        ("step-00000004", [5, 4], True),
        ("step-00000005", [9, 4], False),
        ("step-00000001-r1", [], False),
    ],
)
def test_the_way_of_a_run_through_its_rollbacks(name, left_at, expected):
    """Lineage i ends at left_at[i], and sooner when a later rollback went back further."""
    assert is_ancestor(Path(name), left_at) is expected


def test_the_step_of_a_name():
    assert [store.step_of(Path(n)) for n in ("step-00000012", "step-00000034-r5", "LATEST")] == [
        12,
        34,
        0,
    ]


@pytest.mark.parametrize(
    ("last", "steps", "first"),
    [(2, [20, 40, 50], 40), (0, [20, 40, 50], 40), (4, [20, 30, 40, 50], 20)],
)
def test_what_a_rollback_goes_by_is_there_whatever_the_losses(tmp_path, last, steps, first):
    save(tmp_path, 10, 20, 30, 40, 50)
    keep = Retention(last=last, milestone_every_steps=20, best=True)
    lasting, oldest = keep.lasting(store.paths(tmp_path))
    assert [store.step_of(p) for p in lasting] == steps and oldest == first


def test_what_did_not_count_at_one_rollback_does_not_at_the_next(tmp_path):
    """10 is there as the best, 20 as a milestone; the run went back to 40 and has made no other."""
    save(tmp_path, 10, 20, 40)
    keep = Retention(last=2, milestone_every_steps=20, best=True)
    assert [store.step_of(p) for p in keep.lasting(store.paths(tmp_path), 40)[0]] == [20, 40]
    save(tmp_path, 50)
    lasting, oldest = keep.lasting(store.paths(tmp_path), 40)
    assert [store.step_of(p) for p in lasting] == [20, 40, 50] and oldest == 40
    assert keep.lasting([], 40) == ([], 40)


def test_a_manifest_says_whether_it_was_due(tmp_path):
    save(tmp_path, 10, 13, 20, every=10)
    (store.paths(tmp_path)[-1] / store.MANIFEST).write_text("{}")
    assert [is_due(p) for p in store.paths(tmp_path)] == [True, False, False]
