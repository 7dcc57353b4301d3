"""That a measurement can be repeated and is not lost: its command and code in each result, results
as they come, and a page of those that were cut short."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from outpace.bench import attention_memory, ladder, result, rungs, step_memory
from outpace.cli import bench_memory
from outpace.config.presets import GPT2Shape
from outpace.core.errors import OutOfMemory
from outpace.data.shards import open_dataset
from outpace.runtime.hardware import Machine

ROOT = Path(__file__).resolve().parents[3]


def test_a_result_holds_the_command_and_the_code_that_made_it(tmp_path, monkeypatch):
    argv = ["/usr/bin/outpace", "bench", "ladder", "--dataset", "my data"]
    monkeypatch.setattr(sys, "argv", argv)
    path = result.write_result("made-up", "cpu", {"x": 1}, tmp_path / "r.json")
    found = json.loads(path.read_text())
    assert found["command"] == "outpace bench ladder --dataset 'my data'"
    assert found["x"] == 1 and len(found["versions"]["source"]) == 16
    monkeypatch.setattr(sys, "argv", ["benchmarks/faults.py", "a.xml"])
    assert result.command_line() == "python benchmarks/faults.py a.xml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["outpace", "--nanogpt", f"{tmp_path}/peers/a", "/b", "s3://c"]
    )
    assert result.command_line() == "outpace --nanogpt peers/a /b s3://c"


def test_a_point_of_the_ladder_is_the_same_where_its_data_was_prepared_again(
    tiny_dataset, tmp_path, monkeypatch
):
    """The ladder of gpu-check goes on in a second call, whose data has another temporary folder."""
    again = tmp_path / "again"
    shutil.copytree(tiny_dataset, again)
    machine = Machine("cpu", "a CPU", 8, 24 << 30, 20 << 30, bf16=False)
    setting = rungs.Setting("x", "x", rungs.stack([], rungs.CPU), drift=True)

    def key(folder: Path) -> dict[str, str]:
        shape = GPT2Shape(1, 2, 32, 32, 50257)
        climb = ladder.Climb(shape, open_dataset(folder), torch.device("cpu"))
        return ladder._keys(climb, machine, rungs.CPU, [setting])

    assert key(tiny_dataset) == key(again)
    before = key(again)
    monkeypatch.setattr(ladder, "source_digest", lambda: "edited since")
    assert key(again) != before


def test_memory_is_written_as_it_comes(tmp_path, monkeypatch):
    """Of attention: what the others took is there when one does not fit. Of a step: each row."""

    def point(backend: str, T: int, *_: object) -> dict:
        if backend == "reference":
            raise OutOfMemory("MEMORY", "too much", do="less")
        return {"tokens": T, "bytes": T, "kernel": "K"}

    monkeypatch.setattr(attention_memory, "_in_new_process", point)
    path = tmp_path / "m.json"
    with pytest.raises(OutOfMemory):
        bench_memory.run(["--parts", "attention", "--lengths", "8", "16", "--output", str(path)])
    assert "sdpa" in json.loads(path.read_text())["results"]

    def rows(*_: object):
        row = dict.fromkeys(("formula_bytes", "counted_bytes", "measured_bytes"), 1)
        yield {"name": "one", **row}
        raise KeyboardInterrupt

    monkeypatch.setattr(step_memory, "_rows", rows)
    with pytest.raises(KeyboardInterrupt):
        bench_memory.run(["--parts", "step", "--output", str(path)])
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["steps"]] == ["one"] and found["micro_batch_size"] == 8


def test_the_stall_of_a_save_and_the_cost_of_the_guards_can_be_measured(monkeypatch, tmp_path):
    """In small: `make reliability` takes half an hour, so nobody sees at once that it broke."""
    for folder in ("benchmarks", "tests/faults"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import reliability

    small = {"SAVES": 1, "PAIRS": 2, "WARM_UP": 1}
    for name, value in small.items():
        monkeypatch.setattr(reliability, name, value)
    monkeypatch.setattr(reliability.torch, "set_num_threads", lambda n: None)
    shape = GPT2Shape(1, 2, 32, 32, 257)
    monkeypatch.setattr(reliability, "size", lambda _: types.SimpleNamespace(shape=lambda: shape))
    stall = reliability.stall(tmp_path)
    assert stall["in front"]["stall_s"]["n"] == 1 and stall["ratio"] > 0
    cost = reliability.cost(tmp_path)
    assert cost["pairs"] == 2 and cost["step_ms_with"]["median"] > 0


@pytest.fixture
def gpu_check(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)
    return module


def test_gpu_check_names_the_tests_that_had_failed_when_time_ran_out(gpu_check):
    said = (
        "tests/gpu/test_a.py::test_x[  + loss in place] FAILED [  2%]\n"
        "tests/gpu/test_a.py::test_y PASSED [  4%]\n"
        "[gw3] [  6%] FAILED tests/gpu/test_b.py::test_z \n"
        "FAILED tests/gpu/test_b.py::test_z - assert 1 == 2\n"
    )
    names = ["tests/gpu/test_a.py::test_x[  + loss in place]", "tests/gpu/test_b.py::test_z"]
    assert gpu_check.failures(said) == names
    assert not gpu_check.failures("tests/gpu/test_a.py::test_y PASSED [  4%]\n")


def test_gpu_check_prepares_no_text_for_stages_that_read_none(tmp_path):
    done = _gpu_check(tmp_path, STAGES="tests")
    assert done.wait(60) == 0
    stages = json.loads((tmp_path / "out" / "gpu-check.json").read_text())["stages"]
    assert [s["name"] for s in stages] == ["tests"]


def test_gpu_check_interrupted_keeps_its_results_and_leaves_nothing_in_tmp(tmp_path):
    process = _gpu_check(tmp_path, STAGES="kernels")
    until = time.monotonic() + 60
    while not list(tmp_path.glob("tmp/outpace-gpu-check-*/kernels.log")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    found = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert [s["outcome"] for s in found["stages"]] == ["interrupted"]
    assert found["asked"]["STAGES"] == "kernels" and found["date"]
    assert not list((tmp_path / "tmp").glob("outpace-*"))


def _gpu_check(folder: Path, **asked: str) -> "subprocess.Popen[bytes]":
    (folder / "tmp").mkdir()
    places = {"OUT": str(folder / "out"), "TMPDIR": str(folder / "tmp"), "MINUTES": "1"}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks/gpu_check.py")],
        env=os.environ | places | hidden | asked,
        # A shell that starts the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_results_that_were_cut_short_make_a_page(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rendering
    from rendering import speed

    monkeypatch.setattr(rendering, "DOCS", tmp_path)
    (tmp_path / "img").mkdir()
    r = json.loads((ROOT / "benchmarks" / "results" / "ladder-cpu.json").read_text())
    r |= {"name": "ladder-cpu", "numbers": {"equal_tokens": None, "best_micro_batch": None}}
    for key in ("tokens_per_second", "step_ms"):
        del r["rungs"][0][key]
    page = speed.ladder(r)
    assert "Neither number was measured." in page
    assert "| `fused_attention` |" in page and "`fp32_eager` |" not in page
    assert "`fp32_eager`: no time was left" in page
    assert "img/ladder" not in page  # nothing to be so many times as fast as
    r = json.loads((ROOT / "benchmarks" / "results" / "compare-cpu.json").read_text())
    r |= {"name": "compare-cpu", "commits": {}, "runs": r["runs"][:1]}
    r["runs"][0]["no_time"] = ["llmc"]
    r["runs"][0]["rows"]["nanogpt"]["ours_over_theirs"] = {
        "median": 2.0, "p20": 2.0, "p80": 2.0, "n": 1,
    }  # fmt: skip
    page = speed.race(r)
    assert "llmc was left out: no time was left." in page and "| 2.00 |" in page
    assert f"{r['date']}; transformers" in page
    cut = {
        "name": "kernels-cuda", "machine": {"device": "cuda", "device_name": "X", "cores": 1},
        "versions": {"torch": "2", "python": "3"}, "date": "today", "threads": 1, "tokens": 8,
        "precision": "bf16", "seconds": 1.0, "shape": {"n_embd": 8, "vocab_size": 9}, "gemm": [],
        "command": "outpace bench kernels --seconds 1",
    }  # fmt: skip
    page = speed.kernels(cut)
    assert "`outpace bench kernels --seconds 1`" in page and "roofline" not in page


def test_gpu_check_shares_all_its_time_among_the_stages_asked_for(gpu_check, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "_gpu_bytes", lambda: 0)
    monkeypatch.setattr(gpu_check.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setenv("MINUTES", "10")
    for stages, of_ladder in (("ladder", 600), ("ladder compare", 300), ("", 165)):
        monkeypatch.setenv("STAGES", stages)
        assert gpu_check.Check().limits["ladder"] == pytest.approx(of_ladder)


def test_gpu_check_says_what_tyro_lacks_before_any_stage(gpu_check, monkeypatch, tmp_path, capsys):
    """A folder of wheels fetched with --no-deps, say: each stage would fail, one by one."""
    monkeypatch.setattr(gpu_check, "_gpu_bytes", lambda: 0)
    monkeypatch.setenv("OUT", str(tmp_path))
    find = importlib.util.find_spec
    hidden = {"docstring_parser", "typeguard"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in hidden else find(n))
    assert gpu_check.main() == 2
    assert "error[NO-TOOLS]: no docstring_parser, no typeguard" in capsys.readouterr().out
