"""The probe tells when the code of the model is another than the one that saved a checkpoint."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

from outpace.cli.main import main
from outpace.ops import mlp

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        assert main(command(tiny_dataset, folder, 4)) == 0
    return folder


def command(dataset, folder, steps, *more):
    lr = ("--lr", "0.1", "--schedule", "constant", "--warmup_steps", "0")
    where = ("--dataset", str(dataset), "--run_dir", str(folder), "--max_steps", str(steps))
    return ["train", *TINY, *lr, *where, *more]


@pytest.fixture
def another_activation(monkeypatch):
    monkeypatch.setattr(mlp, "gelu", lambda x: torch.relu(x).square())


def test_a_resume_with_another_activation_is_refused_if_strict_and_else_told(
    run, tiny_dataset, tmp_path, monkeypatch, capsys, another_activation
):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(run, tmp_path / "run")
    checkpoints = sorted((run / "checkpoints").iterdir())
    assert main(command(tiny_dataset, run, 5, "--strict_resume")) == 4
    assert "error[NOT-BIT-EXACT]" in (err := capsys.readouterr().err)
    assert "its loss on a fixed sequence is" in err
    assert sorted((run / "checkpoints").iterdir()) == checkpoints
    assert main(command(tiny_dataset, run, 5)) == 0
    assert "warning: [MODEL-CHANGED]" in capsys.readouterr().err.replace("\n", " ")


def test_reading_a_checkpoint_with_another_activation_is_told(run, monkeypatch, capsys):
    sample = ["sample", str(run), "--max_new_tokens", "1"]
    assert main(sample) == 0
    assert "MODEL-CHANGED" not in capsys.readouterr().err
    monkeypatch.setattr(mlp, "gelu", torch.tanh)
    assert main(sample) == 0
    assert "warning: [MODEL-CHANGED]" in capsys.readouterr().err.replace("\n", " ")


def test_the_same_model_goes_on_without_a_word(run, tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command(tiny_dataset, tmp_path / "other", 2)) == 0
    assert main(command(tiny_dataset, tmp_path / "other", 3, "--strict_resume")) == 0
    assert "MODEL-CHANGED" not in capsys.readouterr().err


def test_the_compiler_is_not_imported_for_it():
    """It takes a second, which every command that loads a model would have to wait."""
    code = (
        "import sys\n"
        "from outpace.config.presets import GPT2Shape\n"
        "from outpace.evals.probe import probe_loss\n"
        "from outpace.model.gpt2 import GPT2\n"
        "model = GPT2(GPT2Shape(n_layer=1, n_head=1, n_embd=16, context=16, vocab_size=64))\n"
        "probe_loss(model, 64, 16)\n"
        "sys.exit('torch._inductor.config' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
