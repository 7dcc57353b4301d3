"""`outpace status` and `outpace verify`: what they say of good, damaged and odd folders, and that
they, and a report, change nothing they are not asked to."""

import json
import shutil
from pathlib import Path

import pytest

from .helpers import TRAIN, flip_bit, tree


def test_a_finished_run_says_so(run, done):
    result = run("status", "run")
    assert result.code == 0
    assert result.out.startswith("run: finished, step 3 of 3\n")
    record = json.loads(run("status", "run", "--json").out)
    assert (record["state"], record["code"], record["last_step"]) == ("finished", 0, 3)
    assert record["last_verified_checkpoint"] == "step-00000003"


def test_a_stopped_run_says_so_and_continues_to_the_same_weights(run, tiny, finished):
    argv = [*TRAIN, "--run_dir", "r"]
    stopped = run(*argv, "--max_hours", "1e-9")
    assert stopped.code == 75
    assert run("status", "r").out.startswith("r: stopped, step 0 of 3\n")
    assert run(*argv).code == 0
    mine, theirs = (
        json.loads((p / "STATUS.json").read_text()) for p in (Path("r"), finished)
    )  # fmt: skip
    assert mine["weights_sha256"] == theirs["weights_sha256"]


@pytest.mark.parametrize(
    ("saved", "then"), [(True, "continues it"), (False, "starts again"), (None, "")]
)
def test_what_a_killed_run_does_next_depends_on_what_it_saved(saved, then, run, done):
    """None: what it saved is gone, so that its command is refused."""
    record = json.loads((done / "STATUS.json").read_text())
    record |= {"state": "running", "resumable": bool(saved)}
    if saved is False:
        record["last_verified_checkpoint"] = None
    if not saved:
        shutil.rmtree(done / "checkpoints")
    (done / "STATUS.json").write_text(json.dumps(record))
    told = run("status", "run").out
    assert told.startswith("run: interrupted")
    assert ("the same command" in told) == bool(then) and then in told
    if not saved:
        missing = run("sample", "run")
        assert missing.code == 4
        assert "the run in run has no whole checkpoint" in missing.error


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"{}", b"\xff\xfe"])
def test_a_status_that_cannot_be_read_is_no_run(content, refused, folder):
    (folder / "STATUS.json").write_bytes(content)
    refused(2, "NOT-A-RUN", "status", ".")


def test_a_good_run_checkpoint_and_dataset_verify(run, done, folder):
    before = tree(folder)
    result = run("verify", "run")
    assert (result.code, result.out.count("whole, every hash is right")) == (0, 2)
    assert run("verify", "run/checkpoints/step-00000003").code == 0
    assert run("verify", "data/tiny").code == 0
    checked = json.loads(run("verify", "run", "--json").out)
    assert checked["kind"] == "run"
    assert [c["fault"] for c in checked["checked"]] == [None, None]
    assert run("status", "run").code == 0
    assert tree(folder) == before


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]
)
def test_one_flipped_bit_in_a_checkpoint_is_found(name, refused, done):
    flip_bit(done / "checkpoints" / "step-00000002" / name)
    result = refused(4, "CKPT-BAD", "verify", "run")
    assert "1 of 2 checkpoints are damaged" in result.error
    assert "step-00000003: whole" in result.out
    refused(4, "CKPT-BAD", "verify", "run/checkpoints/step-00000002")


@pytest.mark.parametrize("pattern", ["train_*.bin", "val_*.bin", "*.len"])
def test_one_flipped_bit_in_a_dataset_is_found(pattern, refused, tiny):
    path = next(tiny.glob(pattern))
    flip_bit(path)
    assert path.name in refused(3, "DATA-DAMAGED", "verify", "data/tiny").error


def test_a_missing_file_of_a_checkpoint_or_dataset_is_found(refused, done, tiny):
    (done / "checkpoints" / "step-00000002" / "optimizer.safetensors").unlink()
    refused(4, "CKPT-BAD", "verify", "run")
    next(tiny.glob("*.len")).unlink()
    refused(3, "DATA-DAMAGED", "verify", "data/tiny")


def test_a_damaged_newest_checkpoint_is_set_aside_loudly_and_the_run_goes_on(run, done):
    flip_bit(done / "checkpoints" / "step-00000003" / "model.safetensors")
    result = run(*TRAIN, "--run_dir", "run", "--max_steps", "4")
    assert result.code == 0
    assert "[CKPT-BAD] step-00000003" in result.err
    assert "at step 2" in result.out
    assert [p.name for p in done.glob("checkpoints/bad-*")]


def test_a_plan_is_json_and_writes_nothing(run, tiny, folder):
    before = tree(folder)
    result = run("plan", *TRAIN[1:], "--json")
    record = json.loads(result.out)
    plan = record["plan"]
    product = plan["micro_batch_size"] * plan["context"] * plan["gradient_accumulation_steps"]
    assert product * plan["world_size"] == plan["tokens_per_step"] == 64
    assert {c["setting"] for c in record["choices"]} >= {"attention_backend", "lr"}
    assert record["machine"]["device"] == "cpu"
    assert run("plan", *TRAIN[1:]).code == 0
    assert tree(folder) == before


def test_samples_and_scores_are_json_when_asked(run, done):
    sample = json.loads(run("sample", "run", "--json", "--max_new_tokens", "4").out)
    again = json.loads(run("sample", "run", "--json", "--max_new_tokens", "4").out)
    assert sample == again
    assert len(sample["texts"]) == 1
    argv = ["--tasks", "loss", "--dataset", "tiny", "--val_tokens", "64", "--json"]
    scores = json.loads(run("evaluate", "run", *argv, "--output", "scores.json").out)
    assert scores == json.loads(Path("scores.json").read_text())
    (validation,) = scores["results"]
    assert validation["task"] == "validation" and validation["loss"] > 0


def test_a_result_file_that_cannot_be_written_is_a_storage_error(refused, done):
    refused(5, "STORAGE", "report", "run", "--output", "run/checkpoints")
    refused(5, "NO-FOLDER", "evaluate", "run", "--tasks", "loss", "--output", "no/such/x.json")


def test_a_config_of_a_run_is_a_recipe_for_the_same_run(run, done):
    result = run("train", "--recipe", "run/config.toml", "--run_dir", "again")
    assert result.code == 0
    a, b = (json.loads((Path(p) / "STATUS.json").read_text()) for p in ("run", "again"))
    assert a["weights_sha256"] == b["weights_sha256"]


def test_a_failed_run_says_the_last_step_that_was_logged(run, done):
    status = json.loads((done / "STATUS.json").read_text())
    del status["last_step"]
    (done / "STATUS.json").write_text(json.dumps(status | {"state": "failed"}))
    assert run("status", "run").out.startswith("run: failed, step 3 of 3\n")


def test_a_run_is_evaluated_from_another_folder_and_without_hellaswag(run, tiny, monkeypatch):
    """On the dataset that it was trained on, a path from the folder of runs/."""
    assert run(*TRAIN, "--run_dir", "runs/one").code == 0
    (Path.cwd() / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    done = run("evaluate", "../runs/one")
    assert done.code == 0 and "validation loss" in done.out, done.err
    assert "no HellaSwag: there is no" in done.err
