"""Real gloo processes, started by torchrun, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, TINY, final_hash, free_port, outpace

from outpace.config.presets import GPT2Shape
from outpace.core.files import read_json_lines
from outpace.interop import huggingface
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group, Ranks


def flags(dataset: Path, run: Path, accumulation: int, *extra: str) -> list[str]:
    """8 sequences per step: micro-batches of 2 and the accumulation that reaches it."""
    batch = ["--gradient_accumulation_steps", str(accumulation), "--tokens_per_step", str(8 * 32)]
    return [
        "train", *TINY, *batch, "--dataset", str(dataset), "--run_dir", str(run),
        "--max_steps", "6", "--save_every_steps", "3", *extra,
    ]  # fmt: skip


def launcher(processes: int, arguments: list[str]) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, f"--nproc_per_node={processes}", "-m", "outpace", *arguments]


def torchrun(processes: int, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launcher(processes, arguments),
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def as_ranks(commands: list[list[str]], cwd: Path) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of processes of Python that make up one group."""
    port = str(free_port())
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(commands))}
    env = os.environ | where | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, *command], cwd=cwd, text=True, stderr=subprocess.PIPE,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[1] for process in ranks]
    return [process.returncode for process in ranks], told


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in read_json_lines(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def single(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    outpace(*flags(tiny_dataset, folder / "run", 4), cwd=folder)
    return folder / "run"


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 2), (4, 1)])
def test_processes_equal_accumulation(single, tiny_dataset, tmp_path, processes, accumulation):
    done = torchrun(processes, flags(tiny_dataset, tmp_path / "run", accumulation), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(single), rel=1e-6)
    got = list(read_json_lines(tmp_path / "run" / "evals.jsonl"))
    want = list(read_json_lines(single / "evals.jsonl"))
    assert [r["loss"] for r in got] == pytest.approx([r["loss"] for r in want], rel=1e-6)
    assert done.stdout.count("finished 6 of 6") == 1, "only the first process speaks"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_equal_one_to_the_bit_where_the_sums_are_the_same(
    tiny_dataset, tmp_path, optimizer
):
    """One micro-batch each: a + b is one sum, wherever it is made. With dropout, too."""
    extra = ["--dropout", "0.1", "--no_use_flash_attention", "--micro_batch_size", "4"]
    extra += ["--optimizer", optimizer]
    outpace(*flags(tiny_dataset, tmp_path / "one", 2, *extra), cwd=tmp_path)
    done = torchrun(2, flags(tiny_dataset, tmp_path / "two", 1, *extra), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "one")[0] == pytest.approx(losses(tmp_path / "two")[0], rel=1e-7)
    assert final_hash(tmp_path / "one") == final_hash(tmp_path / "two")


@pytest.mark.slow
def test_compiled_processes_equal_one_that_is_not(tiny_dataset, tmp_path):
    """DDP cuts a compiled model between its buckets; in bf16, with what a GPU's plan chooses."""
    extra = ["--mixed_precision", "bf16", "--bf16_residual", "on", "--cross_entropy", "chunked"]
    outpace(*flags(tiny_dataset, tmp_path / "one", 4, *extra), cwd=tmp_path)
    more = [*extra, "--compile", "on"]
    done = torchrun(2, flags(tiny_dataset, tmp_path / "two", 2, *more), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)


def test_an_evaluation_whose_peer_is_lost_says_so(single, tmp_path):
    """The other one joins, and is gone."""
    join = (
        "import os, torch; from outpace.runtime.distributed import Group, ranks_from_environment\n"
        "Group(ranks_from_environment(), torch.device('cpu')); os._exit(1)"
    )
    argv = ["-m", "outpace", "evaluate", str(single), "--tasks", "loss", "--device", "cpu"]
    codes, told = as_ranks([argv, ["-c", join]], tmp_path)
    assert codes[0] == 9, told
    assert "error[PEER-LOST]: " in told[0] and "Traceback" not in told[0]


@pytest.mark.slow
def test_processes_that_would_score_something_else_are_refused(single, tiny_dataset, tmp_path):
    """The mean of two losses would be told as the loss of one."""
    other = tmp_path / "other"
    text = tmp_path / "text.txt"
    text.write_text("another text, and some more of it. " * 300)
    outpace("prepare", "files", "--input", str(text), "--output", str(other), "--tokenizer",
            "bytes", "--val_fraction", "0.5", cwd=tmp_path)  # fmt: skip
    argv = ["-m", "outpace", "evaluate", str(single), "--tasks", "loss", "--device", "cpu"]
    both = [[*argv, "--dataset", str(dataset)] for dataset in (tiny_dataset, other)]
    codes, told = as_ranks(both, tmp_path)
    assert codes == [2, 2], told
    assert all("process 1 differs from process 0: dataset: " in line for line in told)


def test_a_group_is_given_up_after_an_error_on_gpus(monkeypatch):
    """nccl would wait for the others, who may wait for us."""
    called = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: called.append("left"))
    c10d = dist.distributed_c10d
    monkeypatch.setattr(c10d, "_abort_process_group", lambda: called.append("given up"))
    for device in ("cpu", "cuda"):
        group = Group(Ranks(), torch.device(device))
        group.ranks = Ranks(0, 2)
        with group:
            pass
        with pytest.raises(OSError), group:
            raise OSError
    assert called == ["left", "left", "left", "given up"]


@pytest.mark.exhaustive
def test_two_processes_score_questions_as_one_does(tmp_path):
    """Each has half of them, and the first tells of all, in their order."""
    rows = [
        {"goal": "Wait " * (1 + i % 5), "sol1": "longer " * (i % 7 + 1), "sol2": "no.", "label": 0}
        for i in range(17)
    ]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = GPT2(GPT2Shape(1, 2, 16, 64, 50257))
    model.init_weights(torch.Generator().manual_seed(1))
    weights = huggingface.transformers_model(dict(model.state_dict()), model.shape)
    weights.save_pretrained(tmp_path / "hf")
    argv = ["evaluate", "hf", "--tasks", "piqa", "--task_data", "piqa.jsonl", "--device", "cpu"]
    outpace(*argv, "--output", "1.json", "--details", "1.jsonl", cwd=tmp_path)
    done = torchrun(2, [*argv, "--output", "2.json", "--details", "2.jsonl"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("piqa (harness, 17 questions)") == 1, "only the first process speaks"
    one, two = (list(read_json_lines(tmp_path / f"{n}.jsonl")) for n in (1, 2))
    assert [x["row"] for x in two] == list(range(17))
    for a, b in zip(one, two, strict=True):
        assert a["pred_norm"] == b["pred_norm"]
        assert a["log_likelihoods"] == pytest.approx(b["log_likelihoods"], rel=1e-5)
    costs = ("seconds", "forward_tokens")
    records = [json.loads((tmp_path / f"{n}.json").read_text())["results"][0] for n in (1, 2)]
    left, right = ({k: v for k, v in r.items() if k not in costs} for r in records)
    assert left == right
