"""The command of the mission, word for word, with only what makes it short enough for a test."""

import json
import threading
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, final_hash, outpace, write_corpus

from outpace.checkpoint import store
from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder

from .helpers import TRAIN

MISSION = [
    "--model_size", "124M", "--mixed_precision", "bf16", "--use_flash_attention",
    "--gradient_accumulation_steps", "8",
]  # fmt: skip


@pytest.mark.slow
def test_it_trains_the_124m_model_on_a_cpu(tmp_path):
    write_corpus(tmp_path / "text", documents=120)
    outpace("prepare", "files", "--input", "text", "--output", "data/tiny", cwd=tmp_path)
    short = ["--micro_batch_size", "1", "--max_steps", "1", "--compile", "off", "--device", "cpu"]
    short += ["--context", "8"]  # a CPU without bf16 instructions takes minutes as it is
    few = ["--val_tokens", "64", "--sample_tokens", "4", "--run_dir", "run"]
    done = outpace("train", *MISSION, "--dataset", "tiny", *short, *few, cwd=tmp_path)

    plan = json.loads((tmp_path / "run" / "plan.json").read_text())["plan"]
    assert plan["parameters"] == 124_439_808 - (1024 - 8) * 768, "but for the positions"
    assert plan["padded_vocab_size"] == 50304
    assert plan["mixed_precision"] == "bf16" and plan["attention_kernel"] == "FLASH_ATTENTION"
    assert plan["tokens_per_step"] == 1 * 8 * 8
    assert "1 sequences x 8 tokens x 8 micro-steps x 1 process = 64" in done.stdout
    (step,) = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert 10.5 < step["loss"] < 11.2, "ln(50257) = 10.82"
    checkpoint = store.latest(RunFolder(tmp_path / "run").checkpoints)
    assert checkpoint is not None and checkpoint.step == 1
    assert (tmp_path / "run" / "report.html").stat().st_size > 1_000_000


def test_train_py_is_outpace_train_in_ten_lines():
    text = Path(ROOT / "train.py").read_text()
    assert len(text.splitlines()) <= 10 and 'main(["train", *sys.argv[1:]])' in text


def test_a_run_folder_with_other_files_is_said(tmp_path, tiny_dataset):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("mine")
    flags = [*TINY, "--dataset", tiny_dataset, "--max_steps", "1", "--run_dir", "docs"]
    first, again = (outpace("train", *flags, cwd=tmp_path).stderr for _ in range(2))
    assert "docs holds other files than a run's (page.md), which stay" in first
    assert "other files" not in again and (tmp_path / "docs" / "page.md").read_text() == "mine"


def test_a_program_may_train_on_a_thread_and_prefer_another_type(run, tiny):
    """Signals are the main thread's alone; weights are fp32 whatever a new tensor is."""
    codes = []
    torch.set_default_dtype(torch.float64)
    try:
        thread = threading.Thread(target=lambda: codes.append(run(*TRAIN, "--run_dir", "a").code))
        thread.start()
        thread.join()
    finally:
        torch.set_default_dtype(torch.float32)
    assert codes == [0]
    assert run(*TRAIN, "--run_dir", "b").code == 0
    assert final_hash(Path("a")) == final_hash(Path("b"))
