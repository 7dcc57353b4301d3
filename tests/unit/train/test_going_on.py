"""What a checkpoint puts back, and what it leaves to where the run goes on."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from outpace.checkpoint.state import load_optimizer, optimizer_tensors
from outpace.config.presets import GPT2Shape
from outpace.core.runfolder import RunFolder
from outpace.model.gpt2 import GPT2
from outpace.train import reminders
from outpace.train.environment import commit_of, versions
from outpace.train.resume import _pieces


def test_an_optimiser_holds_what_was_saved_and_nothing_else():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = {name: t.clone() for name, t in optimizer_tensors(model, optimizer).items()}
    optimizer.step()
    load_optimizer(model, optimizer, saved)
    back = optimizer_tensors(model, optimizer)
    assert back.keys() == saved.keys() and all(back[n].equal(saved[n]) for n in saved)
    load_optimizer(model, optimizer, {})
    assert not optimizer.state, "as it was before the first step"


@pytest.mark.parametrize(
    ("micro", "pieces", "device", "expected"),
    [
        (6, 4, "a", 4),  # 6 rows in fours are three of two, as they were
        (8, 4, "a", 4),
        (2, 4, "a", 1),
        (16, 4, "b", 1),
        (6, 1, "a", 1),
    ],
)
def test_as_many_sequences_as_fitted_on_the_same_device(micro, pieces, device, expected):
    session = SimpleNamespace(
        plan=SimpleNamespace(micro_batch_size=micro),
        group=SimpleNamespace(ranks=SimpleNamespace(is_main=True)),
    )
    then = {"device": "a", "micro_batch_size": 6}
    assert _pieces(session, pieces, then, {"device": device}) == expected


def test_edited_code_goes_on_with_a_run_and_says_so(tmp_path, capsys, monkeypatch):
    folder = RunFolder(tmp_path)
    reminders.tell_of_other_code(folder)  # a new run
    folder.plan.write_text(json.dumps({"versions": versions()}))
    reminders.tell_of_other_code(folder)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(reminders, "source_digest", lambda: "0123456789abcdef")
    reminders.tell_of_other_code(folder)
    assert "[CODE-CHANGED]" in (err := capsys.readouterr().err) and "01234567;" in err


def test_a_commit_says_whether_files_have_changed_since(tmp_path):
    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert commit_of(tmp_path) is None
    git("init")
    (tmp_path / "code.py").write_text("")
    git("add", ".")
    git("commit", "-m", "x")
    git("tag", "-a", "v1", "-m", "x")
    commit = git("rev-parse", "HEAD").stdout.decode().strip()
    assert commit_of(tmp_path) == commit
    (tmp_path / "code.py").write_text("1")
    assert commit_of(tmp_path) == f"{commit}-dirty"


def test_a_model_of_another_size_than_the_plan_counts_is_told(capsys):
    shape = GPT2Shape(1, 2, 16, 32, 257)
    session = SimpleNamespace(model=GPT2(shape), plan=SimpleNamespace(shape=shape))
    reminders.tell_of_other_size(session)
    assert capsys.readouterr().err == ""
    session.model.lm_head = torch.nn.Linear(16, 384, bias=False)
    reminders.tell_of_other_size(session)
    assert "[NOT-GPT-2]" in capsys.readouterr().err
