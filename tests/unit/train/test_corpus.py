"""The dataset of a run, wherever one stands."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

from outpace.core.runfolder import RunFolder
from outpace.train.corpus import trained_on
from outpace.train.plan_lines import data_line


def test_the_datasets_of_a_run_are_found_from_another_folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
    run = RunFolder(tmp_path / "runs" / "r")
    run.create()
    here = {"data/a": "{}/data/a", "data/a:0.9,data/b:0.1": "{0}/data/a:0.9,{0}/data/b:0.1"}
    for told, from_here in here.items():
        run.plan.write_text(json.dumps({"dataset": {"path": told, "fingerprint": "f"}}))
        monkeypatch.chdir(tmp_path)
        assert trained_on(run) == (told, "f")
        monkeypatch.chdir("/")
        assert trained_on(run) == (from_here.format(tmp_path), "f")


def test_the_plan_says_which_of_several_datasets_the_validation_loss_leaves_out():
    def dataset(folder: str, held_back: int) -> SimpleNamespace:
        tokens = {"train": 900, "val": held_back}
        return SimpleNamespace(folder=folder, tokens=tokens.__getitem__)

    mixture = Mock(where="a,b", unigram_entropy=1.0, shares=[0.5, 0.5])
    mixture.datasets = [dataset("a", 0), dataset("b", 90)]
    mixture.tokens.return_value, mixture.passes.return_value = 1800, [1.0, 1.0]
    plan = Mock(max_tokens=1800, bos_aligned=False)
    _, a, b = data_line(mixture, plan).splitlines()
    assert "none of it is in the validation loss" in a and "validation" not in b
