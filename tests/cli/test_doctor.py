"""`outpace doctor` and `outpace verify --deep`: what they find out."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from outpace.checkpoint import store
from outpace.config.presets import GPT2Shape
from outpace.evals.probe import probe_loss, probe_tokens
from outpace.model.gpt2 import GPT2
from outpace.tools import doctor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """The probe of a compiler takes seconds; without one there is nothing to probe."""
    monkeypatch.setenv("PATH", "")


def findings(run, *argv):
    result = run("doctor", "--json", *argv)
    return result, {f["check"]: f for f in json.loads(result.out)}


def test_a_sound_machine_with_a_finished_run_has_no_fault(run, done, folder):
    (folder / "runs").mkdir()
    shutil.copytree(done, folder / "runs" / "a")
    before = sorted(folder.rglob("*"))
    result, found = findings(run, "--run", "run")
    assert result.code == 0, result.err
    assert not [f for f in found.values() if f["verdict"] == "fault"]
    assert {"Python", "torch", "threads", "memory", "attention", "runs/", "vocabulary"} <= set(
        found
    )
    assert found["torch.compile"]["verdict"] == "warning"
    assert "training tokens" in found["data/tiny"]["found"]
    assert found["runs/a"]["found"].startswith("finished")
    assert found["step-00000003"]["verdict"] == "ok"
    assert sorted(folder.rglob("*")) == before
    assert "ok       Python: " in run("doctor").out


def test_a_host_name_that_does_not_resolve_is_told_with_what_torchrun_needs(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "none.invalid")
    [found] = doctor._host_name()
    assert found.verdict == "warning" and "none.invalid does not resolve" in found.found
    assert "--local_addr" in found.do


def test_the_supported_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least, beyond = doctor.TORCH
    assert project["requires-python"] == f">={'.'.join(map(str, doctor.PYTHON))}"
    wanted = f"torch>={least[0]}.{least[1]},<{beyond[0]}.{beyond[1]}"
    assert wanted in project["dependencies"]


@pytest.mark.parametrize(
    ("damage", "check", "code"),
    [("data/tiny/*.bin", "data/tiny", 3), ("run/checkpoints/*2/model*", "step-00000002", 4)],
)
def test_a_fault_has_the_exit_code_of_its_class(damage, check, code, run, done, folder):
    path = next(folder.glob(damage))
    path.write_bytes(path.read_bytes()[:-2])
    result, found = findings(run, "--run", "run")
    assert result.code == code
    assert (found[check]["verdict"], found[check]["exit_code"]) == ("fault", code)
    assert found[check]["do"]
    assert result.error.startswith("error[")


@pytest.mark.parametrize(("size", "code", "verdict"), [("64m", 5, "fault"), ("2g", 0, "warning")])
def test_a_disk_that_is_too_small_is_said(size, code, verdict, folder):
    script = f"/bin/mount -t tmpfs -o size={size} none . && cd {folder} && exec {sys.executable}"
    done = subprocess.run(
        ["/usr/bin/unshare", "-m", "/bin/sh", "-c", f"{script} -m outpace doctor --json"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.returncode == code, done.stderr
    found = {f["check"]: f for f in json.loads(done.stdout)}
    assert found["runs/"]["verdict"] == verdict


# verify --deep.


def rewrite(checkpoint: Path, change) -> None:
    """The same checkpoint with other content and right hashes."""
    state = json.loads((checkpoint / store.STATE).read_text())
    loaded = store.load(checkpoint)
    files = {store.MODEL: loaded.model(),
             store.OPTIMIZER: loaded.optimizer()}  # fmt: skip
    change(state, files)
    shutil.rmtree(checkpoint)
    store.save_as(checkpoint, loaded.step, files, state)


def with_nan(state, files):
    files[store.MODEL]["wte.weight"][3, 1] = math.nan
    state["weights_sha256"] = store.weights_sha256(files[store.MODEL])


def other_weights(state, files):
    files[store.MODEL]["wte.weight"][3, 1] += 1


def other_heads(state, files):
    """Weights of which attention makes much, as those of a model that has learnt."""
    for tensor in files[store.MODEL].values():
        tensor.mul_(8)
    model = GPT2(GPT2Shape(**state["shape"]))
    model.load_state_dict(files[store.MODEL])
    state["weights_sha256"] = store.weights_sha256(files[store.MODEL])
    state["probe_loss"] = probe_loss(model, model.shape.vocab_size, model.shape.context)
    state["shape"]["n_head"] = 1


def no_such_model(state, files):
    state["shape"]["n_layer"] = 10**9


def a_layer_less(state, files):
    del files[store.MODEL]["h.0.ln_1.weight"]


def a_moment_less(state, files):
    del files[store.OPTIMIZER]["wpe.weight::exp_avg"]


def infinite_moment(state, files):
    files[store.OPTIMIZER]["wpe.weight::exp_avg"][0, 0] = math.inf


def misshapen_moment(state, files):
    key = "wpe.weight::exp_avg"
    files[store.OPTIMIZER][key] = files[store.OPTIMIZER][key][:-1].clone()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_nan, "wte.weight is not finite"),
        (other_weights, "weights do not have the SHA-256"),
        (other_heads, "loss on the probe"),
        (no_such_model, "has no valid shape"),
        (a_layer_less, "h.0.ln_1.weight"),
        (a_moment_less, "wpe.weight has no exp_avg"),
        (infinite_moment, "wpe.weight::exp_avg is not finite"),
        (misshapen_moment, "wpe.weight::exp_avg is (31, 32), not (32, 32)"),
    ],
)
def test_deep_finds_what_right_hashes_hide(change, words, run, refused, done):
    assert run("verify", "--deep", "run").code == 0
    rewrite(done / "checkpoints" / "step-00000003", change)
    assert run("verify", "run").code == 0
    assert words in refused(4, "CKPT-BAD", "verify", "--deep", "run").error


def test_deep_says_what_an_older_checkpoint_did_not_record(run, done):
    rewrite(done / "checkpoints" / "step-00000003", lambda state, _: state.pop("probe_loss", None))
    result = run("verify", "--deep", "run")
    assert result.code == 0
    assert "no probe loss was recorded" in result.out


def test_the_probe_is_the_mean_loss_in_double_precision_and_leaves_no_trace():
    shape = GPT2Shape(2, 2, 32, 16, 257)
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    model.train()
    before = torch.get_rng_state()
    loss = probe_loss(model, 257, 16)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    ids = torch.tensor(probe_tokens(257, 17))
    logits = model.double().eval()(ids[None, :-1])[0]
    assert loss == pytest.approx(F.cross_entropy(logits[:, :257], ids[1:]).item(), rel=1e-6)
    assert probe_tokens(257, 17) == probe_tokens(257, 64)[:17]
    assert len(set(probe_tokens(50257, 65))) > 60
    assert 0 < probe_loss(GPT2(GPT2Shape(1, 1, 8, 1, 257)), 257, 1) < math.inf
