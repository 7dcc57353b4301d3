"""`outpace prove-resume`: a run's own checkpoints come out again, on the run's own data."""

import json
import shutil
from pathlib import Path

from conftest import write_corpus

from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.sources.files import FilesSource

from .helpers import TRAIN, tree

NAMELESS = [TRAIN[0], *TRAIN[3:]]
"""The run without its --dataset."""


def other_dataset(folder: Path, text: Path) -> None:
    """A dataset of the same vocabulary with other tokens."""
    source = FilesSource([str(write_corpus(text, documents=80))])
    prepare(source, folder, PrepareOptions(tokenizer="bytes", val_fraction=0.1))


def test_the_last_step_comes_out_again_and_the_run_is_only_read(run, done):
    before = tree(done)
    proof = json.loads(run("prove-resume", done, "--json").out)
    assert proof["equal"] and (proof["begin"], proof["end"]) == (2, 3)
    assert proof["recorded"] == proof["again"] and len(proof["recorded"]) == 2
    assert tree(done) == before


def test_a_run_made_longer_is_proven_with_the_length_it_had(run, done):
    longer = [*TRAIN, "--run_dir", done, "--max_steps", "6", "--keep_checkpoints", "9"]
    assert run(*longer).code == 0
    for step in (2, 3):
        assert run("prove-resume", done, "--at", str(step)).code == 0, step


def test_a_length_that_changed_on_the_way_is_said_and_is_no_failed_proof(run, tiny, refused):
    """The end of the shorter run was none of its intervals, so the longer one let go of it."""
    saves = [*TRAIN, "--run_dir", "runs/r", "--save_every_steps", "2", "--no_keep_best"]
    for steps in ("5", "7"):
        assert run(*saves, "--max_steps", steps).code == 0
    error = refused(2, "LENGTH", "prove-resume", "runs/r", "--at", "4").error
    assert "length changed between step 4 and 6" in error
    assert run("prove-resume", "runs/r").code == 0


def test_it_trains_on_what_the_run_read_and_not_on_what_auto_finds_now(run, tiny, folder):
    shutil.copytree(tiny, folder / "data" / "pydocs")
    assert run(*NAMELESS).code == 0
    (began,) = (folder / "runs").iterdir()
    other_dataset(folder / "data" / "openwebtext", folder / "text")
    assert run("prove-resume", began).code == 0


def test_data_that_is_no_longer_what_it_was_is_said_and_is_no_failed_proof(done, refused, folder):
    plan = json.loads((done / "plan.json").read_text())
    plan["dataset"]["path"] = "data/tiny"
    (done / "plan.json").write_text(json.dumps(plan))
    shutil.rmtree(folder / "data" / "tiny")
    other_dataset(folder / "data" / "tiny", folder / "text")
    assert "other tokens" in refused(3, "DATA-CHANGED", "prove-resume", done).error


def test_a_run_that_auto_no_longer_finds_is_named(run, tiny, folder):
    shutil.copytree(tiny, folder / "data" / "pydocs")
    stopping = [*NAMELESS, "--max_steps", "100000", "--max_hours", "0.0001"]
    assert run(*stopping).code == 75
    (began,) = (folder / "runs").iterdir()
    other_dataset(folder / "data" / "openwebtext", folder / "text")
    other = run(*stopping)
    assert len(list((folder / "runs").iterdir())) == 2
    assert f"this command began runs/{began.name}, which is not finished" in other.err
    assert "--dataset data/pydocs" in other.err
    again = run(*stopping, "--dataset", "data/pydocs")
    assert "resuming from" in again.out and "this command began" not in again.err
