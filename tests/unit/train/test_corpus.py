"""The dataset of a run, wherever one stands."""

import json

from outpace.core.runfolder import RunFolder
from outpace.train.corpus import trained_on


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
