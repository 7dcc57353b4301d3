"""What a GPU would run, called on the stand-in for one (see README.md)."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from outpace.model.gpt2 import LayerNorm

pytestmark = pytest.mark.skipif(
    not os.environ.get("OUTPACE_STANDIN"), reason="runs by `make standin`"
)
ROOT = Path(__file__).resolve().parents[2]
MAIN = [
    "--model_size", "124M", "--mixed_precision", "bf16", "--use_flash_attention",
    "--gradient_accumulation_steps", "8",
]  # fmt: skip
SMALL = [
    "--n_layer", "2", "--n_head", "4", "--n_embd", "256", "--context", "128",
    "--micro_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "3",
    "--sample_tokens", "0",
]  # fmt: skip
"""Samples would be drawn from memory that nobody wrote."""
NUMBER = itertools.count()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder with a dataset in it."""
    folder = tmp_path_factory.mktemp("standin")
    (folder / "text.txt").write_text("The sea was calm, and nobody spoke of it. " * 260_000)
    outpace("prepare", "files", "--input", "text.txt", "--output", "data/sea", place=folder)
    return folder


@pytest.fixture
def place(dataset):
    """That folder. The test's runs are removed: together they would take 25 GB."""
    yield dataset
    shutil.rmtree(dataset / "runs", ignore_errors=True)


def outpace(*arguments: str, place: Path, code: int = 0, gpu: str = "H100") -> str:
    cache = os.environ.get("XDG_CACHE_HOME", place) + f"/{gpu}"  # what is measured is of a GPU
    done = subprocess.run(
        [sys.executable, "-m", "outpace", *arguments],
        cwd=place, capture_output=True, text=True, timeout=600,
        env=os.environ | {"OUTPACE_STANDIN": gpu, "XDG_CACHE_HOME": cache},
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def train(place: Path, *flags: str, gpu: str = "H100") -> str:
    folder = ["--run_dir", f"runs/{next(NUMBER)}"]
    said = outpace("train", *SMALL, "--dataset", "sea", *folder, *flags, place=place, gpu=gpu)
    assert re.search(rf"on (NVIDIA|Tesla).*{gpu[-4:]}", said) and "finished 3 of 3 steps" in said
    return said


def test_the_main_command(place):
    command = [sys.executable, ROOT / "train.py", *MAIN, "--dataset", "sea", "--max_steps", "2"]
    command += ["--sample_tokens", "0"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "64 sequences x 1024 tokens x 8 micro-steps" in said and "compile on" in said
    assert "finished 2 of 2 steps" in said


@pytest.mark.parametrize("compiled", ["on", "off"])
@pytest.mark.parametrize("backend", ["sdpa", "cudnn", "flash", "efficient", "flex"])
def test_attention(place, backend, compiled):
    assert f"attention {backend}" in train(
        place, "--attention_backend", backend, "--compile", compiled, "--mixed_precision", "bf16"
    )


@pytest.mark.parametrize("backend", ["math", "eager", "reference"])
def test_attention_that_stores_the_matrix(place, backend):
    train(place, "--attention_backend", backend, "--no_use_flash_attention")


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("loss", ["eager", "compiled", "chunked", "triton"])
def test_cross_entropy(place, loss, precision):
    train(place, "--cross_entropy", loss, "--mixed_precision", precision)


@pytest.mark.parametrize(
    "flags",
    [
        ["--activation_checkpointing", "gelu"],
        ["--activation_checkpointing", "block"],
        ["--activation_checkpointing", "block", "--compile", "off"],
        ["--fp8_head", "--mixed_precision", "bf16"],
        ["--fp8_head", "--mixed_precision", "bf16", "--compile", "off"],
        ["--dropout", "0.1"],
        ["--document_mask"],
        ["--document_mask", "--compile", "off"],
        ["--deterministic", "on"],
        ["--optimizer", "adamw_foreach", "--mixed_precision", "fp16"],
        ["--optimizer", "muon"],
        ["--tf32", "on", "--mixed_precision", "no"],
    ],
    ids=" ".join,
)
def test_settings(place, flags):
    train(place, *flags)


@pytest.mark.parametrize("gpu", ["A100", "B200", "RTX4090", "RTX5090", "T4"])
def test_other_gpus(place, gpu):
    """With the defaults; what PyTorch says to itself of a smaller GPU is not shown."""
    said = train(place, gpu=gpu)
    assert f"precision {'fp16' if gpu == 'T4' else 'bf16'}" in said and "compile on" in said
    assert "Warning" not in said and "SMs" not in said


def test_what_a_gpu_without_bf16_makes_of_it(place):
    """PyTorch has neither fused attention nor compiled code for it there."""
    said = train(place, "--mixed_precision", "bf16", gpu="T4")
    assert "no fast bf16" in said and "compile off" in said and "T x T" in said
    for flags, name in (
        (["--use_flash_attention"], "NO-FLASH"),
        (["--compile", "on"], "NO-COMPILE"),
        (["--attention_backend", "flash"], "NO-ATTENTION"),
        (["--tf32", "on"], "NO-TF32"),
    ):
        asked = ["--mixed_precision", "bf16", *flags, "--run_dir", "runs/refused"]
        said = outpace("train", *SMALL, "--dataset", "sea", *asked, place=place, code=2, gpu="T4")
        assert said.splitlines()[-1].startswith(f"error[{name}]")
    assert "fp16 EFFICIENT_ATTENTION" in outpace("doctor", place=place, code=2, gpu="T4")


def test_a_normalised_bf16_stream_is_bf16():
    """CUDA's autocast makes it fp32, and where DDP cuts a compiled model it would be moved so."""
    norm, x = LayerNorm(64).to("cuda"), torch.empty(2, 64, device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["sdpa", "cudnn", "flash", "efficient"])
def test_keys_beside_bf16_queries_are_bf16_when_a_run_samples(place, backend):
    """cuDNN's kernel would not look. Memory that nobody wrote has no odds: token 0 is drawn."""
    code = (
        "import sys, torch; from outpace.ops.attention import fused, sdpa\n"
        "def same(f):\n"
        "    def attend(*a, **k):\n"
        "        types = {x.dtype for x in a if isinstance(x, torch.Tensor)}\n"
        "        assert len(types) == 1 or not a[0].is_cuda, types\n"
        "        return f(*a, **k)\n"
        "    return attend\n"
        "sdpa.attend = same(sdpa.attend)\n"
        "fused.Fused.attend = (lambda f: lambda self, *a, **k: "
        "same(lambda *b, **c: f(self, *b, **c))(*a, **k))(fused.Fused.attend)\n"
        "from outpace.generate import engine\n"
        "engine.draw = lambda l, *_: torch.zeros(len(l), 1, dtype=torch.long, device=l.device)\n"
        "from outpace.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = ["train", *SMALL, "--dataset", "sea", "--run_dir", f"runs/{next(NUMBER)}"]
    argv += ["--attention_backend", backend, "--sample_tokens", "3"]
    argv += ["--mixed_precision", "bf16", "--compile", "off"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=place, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and "sample 1" in done.stdout, done.stdout + done.stderr


def test_sums_for_biases_take_no_pass_of_their_own():
    """The compiler joins them to the kernel of GELU's gradient, and to that which puts the
    gradients of q, k and v together."""
    code = (
        "import torch\n"
        "from torch._inductor.utils import run_fw_bw_and_get_code\n"
        "from outpace.config.presets import GPT2Shape\n"
        "from outpace.model.gpt2 import GPT2, Compute\n"
        "from outpace.ops.cross_entropy import triton\n"
        "shape, how = GPT2Shape(2, 12, 768, 1024, 50257), Compute(loss_sum=triton.loss_sum)\n"
        "model = GPT2(shape, how).cuda()\n"
        "idx = torch.zeros(8, 1024, dtype=torch.long, device='cuda')\n"
        "with torch.autocast('cuda', torch.bfloat16):\n"
        "    step = torch.compile(model, dynamic=False)\n"
        "    print(run_fw_bw_and_get_code(lambda: step(idx, idx))[1][1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    kernels = set(re.findall(r"def (triton_\w+)\(", done.stdout))
    for makes_gradient in ("gelu_backward", "cat"):
        (kernel,) = (name for name in kernels if makes_gradient in name)
        assert "sum" in kernel, done.stderr


def test_one_process_under_torchrun(place):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1"]
    command += ["-m", "outpace", "train", *SMALL, "--dataset", "sea", "--run_dir", "runs/torchrun"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_run_is_resumed_and_the_resume_proven(place):
    flags = [*SMALL, "--dataset", "sea", "--run_dir", "runs/resumed"]
    outpace("train", *flags, place=place)
    said = outpace("train", *flags, "--max_steps", "5", place=place)
    assert "finished 5 of 5 steps" in said
    assert "equal to the last bit" in outpace("prove-resume", "runs/resumed", place=place)


def test_doctor_sees_that_nothing_is_computed(place):
    said = outpace("doctor", place=place, code=2)
    assert "does not compute (a wrong product, driver" in said and "torch.compile: works" in said


BENCHMARKS = {
    "kernels": ["--seconds", "0.05"],
    "profile": ["--dataset", "sea", *SMALL[:12], "--max_steps", "100"],
    "memory": ["--measure", "--lengths", "256", "--context", "256"],
    "loader": [],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(place, name):
    outpace("bench", name, *BENCHMARKS[name], "--output", f"{name}.json", place=place)
    assert (place / f"{name}.json").is_file()
