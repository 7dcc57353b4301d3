"""bench kernels: FLOPs against torch's own counter, the loop, the result and the calibration."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from outpace.bench import kernels
from outpace.bench.kernels import Kernels
from outpace.config.presets import GPT2Shape
from outpace.model.cost import flops_per_token, parameters
from outpace.runtime import calibration

CPU = torch.device("cpu")
SHAPE = GPT2Shape(2, 4, 64, 32, 300)
K = Kernels(SHAPE, 64, "no", 0.01, CPU)


def flops(row: dict) -> float:
    return row["flops_per_s"] * row["ms"]["median"] / 1e3


def test_the_products_of_a_map_are_those_of_a_linear_layer_forward_and_backward():
    rows = list(kernels.gemm_rows(K))
    assert [r["name"] for r in rows[:3]] == ["qkv forward", "qkv dgrad", "qkv wgrad"]
    for name, (inside, outside) in {
        "qkv": (64, 192),
        "mlp_proj": (256, 64),
        "head": (64, 384),
    }.items():
        x = torch.randn(64, inside, requires_grad=True)
        w = torch.randn(outside, inside, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            F.linear(x, w).sum().backward()
        mine = sum(flops(r) for r in rows if r["map"] == name)
        assert mine == pytest.approx(counter.get_total_flops())


def test_attention_counts_the_causal_half_of_what_torch_counts():
    rows = {r["name"]: r for r in kernels.attention_rows(K)}
    q = torch.randn(2, 4, 32, 16)
    with FlopCounterMode(display=False) as counter:
        q @ q.transpose(-2, -1) @ q  # both products over the full square
    forward, both = rows["reference forward"], rows["reference forward and backward"]
    assert flops(forward) == pytest.approx(counter.get_total_flops() / 2)
    assert flops(both) == pytest.approx(3 * flops(forward))
    served = {r.get("backend") for r in rows.values() if "ms" in r}
    assert {"reference", "sdpa"} <= served
    assert all(r["skipped"] for r in rows.values() if "ms" not in r)


def test_cross_entropy_counts_the_head_and_every_row_is_measured_or_explained(monkeypatch):
    names = ("eager", "chunked", "triton")
    table = {name: f"outpace.ops.cross_entropy.{name}" for name in names}
    monkeypatch.setattr(kernels.LOSSES, "_table", table)  # the others compile for half a minute
    eager, chunked, triton = kernels.cross_entropy_rows(K)
    h = torch.randn(64, 64, requires_grad=True)
    w = torch.randn(384, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        F.linear(h, w).sum().backward()
    for row in (eager, chunked):
        assert flops(row) == pytest.approx(counter.get_total_flops())
    assert "GPU" in triton["skipped"]


def test_the_parts_add_up_to_the_one_formula_of_the_project():
    """Five maps in each layer but the head, and attention: `6 N + 6 L T C` a token."""
    gemm = {}
    for row in kernels.gemm_rows(K):
        gemm[row["map"]] = gemm.get(row["map"], 0.0) + flops(row)
    attention = next(
        flops(r) for r in kernels.attention_rows(K) if r["name"] == "sdpa forward and backward"
    )
    total = gemm.pop("head") + SHAPE.n_layer * (sum(gemm.values()) + attention)
    assert total == pytest.approx(K.tokens * flops_per_token(SHAPE))


def test_adamw_rows_move_28_bytes_a_parameter():
    rows = list(kernels.adamw_rows(K))
    assert [r["name"] for r in rows] == ["fused", "foreach", "for_loop"]
    for row in rows:
        moved = row["bytes_per_s"] * row["ms"]["median"] / 1e3
        assert moved == pytest.approx(28 * parameters(SHAPE, padded=True))


def test_a_loop_times_what_it_runs():
    calls = []

    def run() -> None:
        calls.append(time.sleep(0.002))

    ms, allocated = kernels.sustained_ms(run, 0.05, CPU)
    assert len(ms) == kernels.WINDOWS and min(ms) >= 2.0
    assert (len(calls) - 2) % (kernels.WINDOWS + 1) == 0 and allocated == 0


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "does not fit"),
        (RuntimeError("CUDA out of memory"), "does not fit"),
        (RuntimeError("no kernel image"), "it failed: no kernel image"),
    ],
    ids=str,
)
def test_a_row_that_cannot_run_says_why_and_the_rest_goes_on(error, says):
    def run() -> None:
        raise error

    assert says in kernels._timed(K, {"name": "x"}, run, flops=1.0)["skipped"]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A result, and the folder of the calibration."""
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    k = Kernels(SHAPE, 64, "no", 0.01, CPU, ("gemm", "copy"))
    return kernels.measure(k, tmp_path / "kernels.json"), tmp_path / "cache"


def test_the_calibration_holds_the_rates_of_the_result(measured):
    result, cache = measured
    body = json.loads(result.read_text())
    assert len(body["gemm"]) == 15 and body["tokens"] == 64
    calibration = json.loads(next(cache.glob("calibration-cpu-*-no.json")).read_text())
    rates = calibration["gemm_flops_per_s"]
    assert rates.keys() == {"qkv", "proj", "fc", "mlp_proj", "head"}
    for row in body["gemm"]:
        assert rates[row["map"]][row["pass"]] == row["flops_per_s"]
    assert calibration["copy_bytes_per_s"] == body["copy"][0]["bytes_per_s"]
    assert calibration["device_name"] == body["machine"]["device_name"]
    assert calibration["torch"] == torch.__version__


def test_a_quick_look_or_a_part_of_it_leaves_the_calibration_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    for parts, calibrate in ((("gemm", "copy"), False), (("gemm",), True)):
        k = Kernels(SHAPE, 64, "no", 0.01, CPU, parts, calibrate)
        kernels.measure(k, tmp_path / "kernels.json")
        assert not (tmp_path / "cache").exists()


def test_the_calibration_is_found_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "a"))
    name = "calibration-cuda-bf16.json"
    assert calibration.path("cuda", "bf16", 1) == tmp_path / "a" / name
    monkeypatch.delenv("OUTPACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert calibration.path("cuda", "bf16", 1) == tmp_path / "b" / "outpace" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert calibration.path("cuda", "bf16", 1) == tmp_path / "c" / ".cache" / "outpace" / name


def test_a_cache_folder_that_cannot_be_written_costs_the_calibration_alone(
    monkeypatch, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "file" / "cache"))
    k = Kernels(SHAPE, 64, "no", 0.01, CPU, ("gemm", "copy"))
    assert kernels.measure(k, tmp_path / "kernels.json").is_file()
    assert "the calibration was not kept" in capsys.readouterr().err
