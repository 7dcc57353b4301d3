"""The peers: how they are known, staged and read, and what follows from their times."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from outpace.bench import peers, throughput
from outpace.bench.peers import (
    PEERS,
    Contestant,
    Job,
    check_checkout,
    huggingface,
    llmc,
    llmc_c,
    llmc_cuda,
    modded,
    nanogpt,
    ours,
    write_shard,
)
from outpace.bench.turns import Timed
from outpace.config.presets import GPT2Shape
from outpace.core.errors import UsageError
from outpace.data.shards import Dataset, open_dataset
from outpace.interop.llmc import read_model

TINY = GPT2Shape(2, 2, 32, 32, 257)
GPT2_124M = GPT2Shape(12, 12, 768, 1024, 50257)
CHECKOUTS = ["nanogpt", "llmc", "modded"]


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Path) -> Dataset:
    return open_dataset(tiny_dataset)


def job(dataset: Dataset, shape: GPT2Shape = TINY, device: str = "cpu") -> Job:
    return Job(shape, dataset, 2, 3, device)


def checkout_of(name: str, folder: Path) -> Path:
    for file in PEERS.load(name).FILES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"# {file}\n")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def all_tokens(dataset: Dataset, split: str) -> np.ndarray:
    stream = dataset.stream(split)
    out = np.empty(len(stream), np.uint16)
    stream.read(0, out)
    return out


# What a checkout must be.


@pytest.mark.parametrize("name", CHECKOUTS)
def test_a_folder_that_is_not_the_peer_is_refused_with_every_file_it_lacks(name, tmp_path):
    checkout_of(name, tmp_path)
    check_checkout(name, tmp_path)
    peer = PEERS.load(name)
    for file in peer.FILES:
        (tmp_path / file).unlink()
    with pytest.raises(UsageError) as refused:
        check_checkout(name, tmp_path)
    assert refused.value.name == f"NOT-{name.upper()}"
    assert peer.LABEL in str(refused.value)
    assert all(file in str(refused.value) for file in peer.FILES)
    assert "\n" not in str(refused.value)


def test_no_checkout_passes_for_another_peer(tmp_path):
    for name in CHECKOUTS:
        folder = checkout_of(name, tmp_path / name)
        for other in set(CHECKOUTS) - {name}:
            with pytest.raises(UsageError):
                check_checkout(other, folder)


def test_a_large_text_is_not_copied_whole_for_a_peer_that_reads_no_shards(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(peers, "MOST_TOKENS", 1000)
    peers.write_raw(dataset.stream("train"), tmp_path / "train.bin")
    copied = np.fromfile(tmp_path / "train.bin", np.uint16)
    assert np.array_equal(copied, all_tokens(dataset, "train")[:1000])


# Logs, in the peers' own words.


def test_nanogpt_lines():
    text = (
        "number of parameters: 0.04M\nstep 0: train loss 5.5497, val loss 5.5501\n"
        "iter 0: loss 10.8301, time 30213.99ms, mfu -100.00%\n"
        "iter 1: loss 10.8156, time 205.30ms, mfu -100.00%\n"
        "iter 2: loss nan, time 206.01ms, mfu 0.01%\niter 3: lo"
    )
    lines = nanogpt.log_lines(text)
    assert [(i, ms) for i, _, ms in lines] == [(0, 30213.99), (1, 205.30), (2, 206.01)]
    assert lines[1][1] == 10.8156


def test_llmc_lines():
    text = (
        "compiling the model...\nDataLoader: total number of tokens: 2,049 across 1 files\n"
        "step    1/100000 | train loss 11.008018 | norm 15.0934 | lr 1.00e-04 | (31735.16 ms | 2 "
        "tok/s)\n"
        "step    2/100000 | train loss 9.617455 | norm 15.7811 | lr 1.00e-04 | (1652.34 ms | 39 "
        "tok/s)\nfinal 20 iters avg: 1650.000ms\n"
    )
    assert llmc.step_ms(text) == [31735.16, 1652.34]


def test_lines_of_llmcs_cuda_program():
    text = (
        "val loss 11.009310\n"
        "step    1/100000 | loss 11.009735 (+nanz)| norm 15.3371 (+nanz)| lr 3.00e-04 | 1412.25 ms "
        "| 18.2% bf16 MFU | 371243 tok/s\n"
        "step    2/100000 | loss -nan (-1.04z)| norm 15.1422 (+0.30z)| lr 3.00e-04 | 1198.53 ms | "
        "21.5% bf16 MFU | 437442 tok/s\nstep    3/100000 | loss 1"
    )
    assert llmc_cuda.step_ms(text) == [1412.25, 1198.53]


def test_lines_of_llmcs_c_program():
    text = (
        "val loss 11.009310\nstep 0: train loss 11.013574 (took 4318.269000 ms)\n"
        "step 1: train loss -nan (took 3913.5 ms)\ngenerating:\n---\n????\n---\nstep 2: train lo"
    )
    assert llmc_c.step_ms(text) == [4318.269, 3913.5]


def test_modded_lines_are_differences_of_training_time_and_validation_is_none():
    text = (
        "logs/6b19a86b.txt\n"
        "step:0/3250 val_loss:10.82584 train_time:0.001s step_avg:nanms\n"
        "step:1/3250 train_time:20.500s step_avg:20500.00ms\n"
        "step:2/3250 train_time:21.570s step_avg:10785.00ms\n"
        "step:3/3250 train_time:22.640s step_avg:7546.67ms\n"
        "step:125/3250 val_loss:4.66393 train_time:22.870s step_avg:182.95ms\n"
    )
    assert modded.step_ms(text) == pytest.approx([20500, 1070, 1070])


def test_transformers_lines_are_those_of_its_loop():
    text = "step 1 loss 10.9081 time 21034.22 ms\nstep 2 loss 10.9000 time 81.10 ms\nstep 3 loss "
    assert huggingface.step_ms(text) == [21034.22, 81.10]


def test_our_records_of_a_metrics_file_still_being_written():
    records = [
        {"step": 1, "tokens_per_second": None},
        {"step": 2, "tokens_per_second": 500.0},
        {"step": 3, "tokens_per_second": 400.0},
    ]
    text = "".join(json.dumps(r) + "\n" for r in records) + '{"step": 4, "tok'
    assert ours.step_ms(text, tokens_per_step=200) == pytest.approx([400.0, 500.0])


# Staging.


def test_nanogpt_is_linked_beside_the_same_tokens_and_its_checkout_stays_as_it_was(
    dataset, tmp_path
):
    checkout = checkout_of("nanogpt", tmp_path / "checkout")
    before = hashes(checkout)
    (c,) = nanogpt.contestants(checkout, job(dataset), tmp_path / "stage")
    assert hashes(checkout) == before
    for file in nanogpt.FILES:
        assert (tmp_path / "stage" / file).resolve() == (checkout / file).resolve()
    data = tmp_path / "stage" / "data" / "bench"
    for split in ("train", "val"):
        raw = np.fromfile(data / f"{split}.bin", np.uint16)
        assert np.array_equal(raw, all_tokens(dataset, split))
    assert pickle.loads((data / "meta.pkl").read_bytes())["vocab_size"] == 384
    assert {"--batch_size=2", "--gradient_accumulation_steps=3", "--dtype=float32"} <= {*c.command}
    assert c.tokens_per_step == 2 * 3 * 32


@pytest.mark.parametrize("tokens", [1, 1000, 200_000], ids=str)
def test_a_shard_is_the_split_over_and_over(dataset, tmp_path, tokens):
    """Read as train_gpt2.py and train_gpt_simple.py read it."""
    write_shard(dataset.stream("train"), tmp_path / "x.bin", tokens)
    header = np.fromfile(tmp_path / "x.bin", np.int32, 256)
    assert list(header[:3]) == [20240520, 1, tokens]
    read = np.fromfile(tmp_path / "x.bin", np.uint16, offset=1024)
    assert np.array_equal(read, np.resize(all_tokens(dataset, "train"), tokens))


def test_llmc_gets_a_shard_of_whole_steps_and_gpt2s_vocabulary_without_a_network(dataset, tmp_path):
    checkout = checkout_of("llmc", tmp_path / "checkout")
    shape = GPT2Shape(12, 12, 768, 64, 50257)
    (c,) = llmc.contestants(checkout, job(dataset, shape), tmp_path / "stage")
    flags = dict(zip(c.command[3::2], c.command[4::2], strict=True))
    total, passes = int(flags["--total_batch_size"]), int(flags["--batch_size"]) * 64
    assert total == c.tokens_per_step and total % passes == 0
    tokens = np.fromfile(tmp_path / "stage" / flags["--input_bin"], np.int32, 3)[2]
    assert tokens >= total + 1
    code = "import tiktoken; e = tiktoken.get_encoding('gpt2'); print(e.encode('hello world'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | c.env | {"https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[31373, 995]", done.stderr


def test_llmcs_cuda_program_runs_if_the_user_has_built_it(dataset, tmp_path):
    checkout, folder = checkout_of("llmc_cuda", tmp_path / "checkout"), tmp_path / "stage"
    the_job = job(dataset, GPT2Shape(12, 12, 768, 64, 50257), "cuda")
    with pytest.raises(UsageError, match="no train_gpt2cu; do: make train_gpt2cu USE_CUDNN=1"):
        llmc_cuda.contestants(checkout, the_job, folder)
    program = checkout / "train_gpt2cu"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    (c,) = llmc_cuda.contestants(checkout, the_job, folder)
    words = subprocess.run(c.command, cwd=c.cwd, capture_output=True, text=True).stdout.split()
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert flags["-e"] == "d12" and flags["-b"] == "2" and flags["-t"] == "64"
    assert int(flags["-d"]) == c.tokens_per_step == 2 * 3 * 64
    assert np.fromfile(folder / flags["-i"], np.int32, 3)[2] >= c.tokens_per_step + 1
    assert "its own attention" in c.setting
    program.write_bytes(b"ELF libcudnn.so.9")
    (c,) = llmc_cuda.contestants(checkout, the_job, tmp_path / "another")
    assert "cuDNN's attention" in c.setting


def test_llmcs_c_program_gets_the_files_that_it_looks_for(dataset, tmp_path):
    """In the folder and under the names that its main() has (train_gpt2.c)."""
    checkout, folder = checkout_of("llmc_c", tmp_path / "checkout"), tmp_path / "stage"
    shape = GPT2Shape(1, 2, 32, 64, 50257)
    the_job = Job(shape, dataset, 4, 1, "cpu")
    with pytest.raises(UsageError, match="no train_gpt2; do: make train_gpt2"):
        llmc_c.contestants(checkout, the_job, folder)
    program = checkout / "train_gpt2"
    program.write_text("#!/bin/sh\nfind . -type f\n")
    program.chmod(0o755)
    (c,) = llmc_c.contestants(checkout, the_job, folder)
    files = subprocess.run(c.command, cwd=c.cwd, capture_output=True, text=True).stdout.split()
    shards = [f"./dev/data/tinyshakespeare/tiny_shakespeare_{s}.bin" for s in ("train", "val")]
    assert {*files} == {"./gpt2_124M.bin", "./gpt2_tokenizer.bin", *shards}
    for shard in shards:
        assert np.fromfile(folder / shard, np.int32, 3)[2] == 41 * 4 * 64 + 1
    assert read_model(folder / "gpt2_124M.bin")[0] == shape
    tokenizer = (folder / "gpt2_tokenizer.bin").read_bytes()
    assert list(np.frombuffer(tokenizer[:16], np.uint32)) == [20240328, 2, 50257, 50256]
    assert tokenizer[1024:] == b"\x01?" * 50257
    assert c.tokens_per_step == 4 * 64


def test_what_a_peer_cannot_run_is_said(dataset):
    assert "CPUs" in llmc_c.why_not(job(dataset, GPT2_124M, "cuda"))
    assert "--micro_batch_size 4 --context 64" in llmc_c.why_not(job(dataset, GPT2_124M))
    short = GPT2Shape(12, 12, 768, 64, 50257)
    assert llmc_c.why_not(Job(short, dataset, 4, 1, "cpu")) is None
    assert "one pass" in llmc_c.why_not(Job(short, dataset, 4, 2, "cpu"))
    assert "CUDA" in llmc_cuda.why_not(job(dataset, GPT2_124M))
    assert llmc_cuda.why_not(job(dataset, GPT2_124M, "cuda")) is None
    assert "d12" in llmc.why_not(job(dataset))
    assert "vocabulary" in llmc.why_not(job(dataset, GPT2Shape(12, 12, 768, 1024, 257)))
    assert "1,024" in llmc.why_not(job(dataset, GPT2Shape(12, 12, 768, 2048, 50257)))
    assert llmc.why_not(job(dataset, GPT2_124M)) is None
    assert "CUDA" in modded.why_not(job(dataset, GPT2_124M))
    assert "vocabulary" in modded.why_not(job(dataset, TINY, "cuda"))
    assert modded.why_not(job(dataset, GPT2_124M, "cuda")) is None


def test_modded_gets_what_torchrun_would_set_and_enough_tokens_to_validate(dataset, tmp_path):
    checkout = checkout_of("modded", tmp_path / "checkout")
    (c,) = modded.contestants(checkout, job(dataset, GPT2_124M, "cuda"), tmp_path / "stage")
    assert {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} == c.env.keys()
    data = tmp_path / "stage" / "data" / "fineweb10B"
    (val,), (train,) = data.glob("fineweb_val_*.bin"), data.glob("fineweb_train_*.bin")
    # Its reader goes to the next file when `position + batch + 1 >= tokens`.
    assert np.fromfile(val, np.int32, 3)[2] > 20 * 524_288 + 1
    assert np.fromfile(train, np.int32, 3)[2] > 100 * 524_288
    assert c.flops_per_token == pytest.approx(798.0e6, rel=1e-3)


# The result.


def test_rates_and_ratios_follow_from_tokens_and_milliseconds(dataset, tmp_path):
    windows = {
        "outpace": [[100.0] * 3, [200.0] * 3],
        "nanogpt": [[150.0] * 3, [400.0] * 3],
        "late": [],
    }
    timed = [
        Timed(Contestant(name, "", [], lambda _: [], 100, 1.0), tmp_path, found)
        for name, found in windows.items()
    ]
    summary = throughput._summary(job(dataset), timed, 2)
    rows = summary["rows"]
    assert rows["outpace"]["tokens_per_second"] == pytest.approx(100 / 0.150)
    assert rows["outpace"]["mfu"] is None  # a CPU has no data sheet here
    # The median of 1.5 and 2.0, which is not the ratio of the medians over all steps.
    assert rows["nanogpt"]["ours_over_theirs"]["median"] == pytest.approx(1.75)
    assert summary["no_time"] == ["late"] and summary["failed"] == {}


@pytest.mark.exhaustive
def test_outpace_and_transformers_race_and_a_broken_peer_is_told_after_the_result(
    tiny_dataset, tmp_path
):
    """The command itself, with a nanoGPT checkout whose train.py breaks."""
    checkout = checkout_of("nanogpt", tmp_path / "nanoGPT")
    (checkout / "train.py").write_text("raise RuntimeError('no such thing')\n")
    flags = {
        "nanogpt": checkout, "dataset": tiny_dataset, "device": "cpu", "n_layer": 1, "n_head": 2,
        "n_embd": 32, "context": 32, "micro_batch_size": 2, "window_s": 1, "rounds": 2,
        "output": tmp_path / "result.json",
    }  # fmt: skip
    words = [x for key, value in flags.items() for x in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "outpace", "bench", "compare", "--transformers", *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error[PEER-FAILED]: nanogpt: it ended with 1: RuntimeError: no such")
    (run,) = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert run["rows"].keys() == {"outpace", "transformers"}
    for row in run["rows"].values():
        assert row["tokens_per_second"] > 0 and len(row["windows_ms"]) == 2
    assert run["rows"]["transformers"]["ours_over_theirs"]["n"] == 2
