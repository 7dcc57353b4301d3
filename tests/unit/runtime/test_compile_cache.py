"""Compiled code outlives the process: where it is kept, and that the next run finds it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from outpace.runtime.compile import CACHE_VARIABLE, keep_compiled_code

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    return tmp_path / "cache"


def test_compiled_code_is_kept_in_our_cache_folder(cache):
    keep_compiled_code()
    assert os.environ[CACHE_VARIABLE] == str(cache / "inductor")
    assert list((cache / "inductor").iterdir()) == []


def test_the_temporary_folder_that_pytorch_takes_by_itself_does_not_stay(cache, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, default_cache_dir())
    keep_compiled_code()
    assert os.environ[CACHE_VARIABLE] == str(cache / "inductor")


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "a$b"])
def test_a_path_that_a_shell_would_want_quoted_is_not_taken(cache, monkeypatch, name):
    monkeypatch.setenv("OUTPACE_CACHE", str(cache / name))
    keep_compiled_code()
    assert os.environ.get(CACHE_VARIABLE, default_cache_dir()) == default_cache_dir()


def test_a_compiler_that_fails_is_told_in_its_own_words_and_the_path_at_fault(tmp_path):
    """A new process: what is compiled once is not compiled again."""
    code = "import torch, outpace.runtime.compile as c; print(c.why_not(torch.device('cpu')))"
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path / "a b"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "error:" in run.stdout and f"unlike {tmp_path / 'a b'}" in run.stdout, run.stderr


def test_a_folder_that_the_user_has_named_stays(cache, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "/elsewhere")
    keep_compiled_code()
    assert os.environ[CACHE_VARIABLE] == "/elsewhere"
    assert not cache.exists()


@pytest.mark.parametrize("place", ["/proc/outpace", "a file"])
def test_where_ours_cannot_be_written_pytorchs_own_is_taken(place, tmp_path, monkeypatch, cache):
    if place == "a file":
        place = str(tmp_path / "file")
        Path(place).write_text("")
    monkeypatch.setenv("OUTPACE_CACHE", place)
    keep_compiled_code()
    assert not os.environ.get(CACHE_VARIABLE, "").startswith(place)


COMPILES = """if True:
    import json, torch
    from torch._dynamo.utils import counters
    from outpace.config.presets import GPT2Shape
    from outpace.model.gpt2 import GPT2, Compute
    from outpace.ops.cross_entropy import triton
    from outpace.runtime.compile import compile_module
    idx = torch.ones(2, 8, dtype=torch.long)
    model = GPT2(GPT2Shape(1, 2, 16, 8, 100), Compute(loss_sum=triton.loss_sum))
    compile_module(model, "default")(idx, idx).backward()
    found = counters["inductor"] + counters["aot_autograd"]
    kinds = ("hit", "miss", "bypass")
    print(json.dumps({kind: found[f"autograd_cache_{kind}"] for kind in kinds}))
"""


@pytest.mark.exhaustive
def test_a_second_process_compiles_nothing_again(cache):
    """With the loss of a GPU: PyTorch's cache passes over an autograd.Function unless told."""
    first, second = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", COMPILES],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(2)
    )
    assert first == {"hit": 0, "miss": 1, "bypass": 0}
    assert second == {"hit": 1, "miss": 0, "bypass": 0}
