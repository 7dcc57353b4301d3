"""Plans for machines that are not here, and what they predict: against published runs, closed forms
and the machine's memory."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.cli.main import main
from outpace.config.load import load
from outpace.core.errors import OutOfMemory, UsageError
from outpace.runtime import calibration
from outpace.runtime.calibration import Calibration
from outpace.runtime.hardware import Machine, detect
from outpace.runtime.machines import GPUS, by_device_name, named
from outpace.tools.expect import Expected, expect_elsewhere
from outpace.train.forecast import checkpoints_kept, measured_rates, rates_here

RECIPE = ["--recipe", "gpt2_124M"]


@pytest.fixture(autouse=True)
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))


def expected(machine: str, *argv: str, price: float = 0.0) -> Expected:
    config, set_by = load([*RECIPE, *argv])
    return expect_elsewhere(config, set_by, machine, price)


def speed(machine: str, *argv: str) -> float:
    e = expected(machine, *argv)
    assert e.forecast.tokens_per_second is not None
    return e.forecast.tokens_per_second / e.plan.world_size


# Tokens a second and GPU of GPT-2 124M or of a model as large, in PyTorch but for llm.c's.
PUBLISHED = [
    ("h100x8", 473_000, "modded-nanogpt, 2024-10-29_Optimizers: Adam, 8 H100, torch 2.5"),
    ("h100x8", 440_000, "modded-nanogpt, track 3, train_gpt_simple.py: 8 H100, torch 2.11"),
    ("h200", 490_000, "modded-nanogpt, track 3, 20260517_ortho: 1 H200, torch 2.11"),
    ("a100-80", 182_000, "build-nanogpt's lecture, last rung: 1 A100 80 GB"),
    ("a100-80x8", 188_000, "modded-nanogpt, track 3, 20260522: 8 A100 80 GB"),
    ("rtx4090", 130_000, "build-nanogpt, issue 6: 1 RTX 4090"),
    ("b200x8", 621_000, "modded-nanogpt, track 3: 8 B200, 105.5 ms per step of 524,288 tokens"),
    ("l40sx8", 76_000, "modded-nanogpt, track 3: 8 L40S, 860 ms per step of 524,288 tokens"),
]


@pytest.mark.parametrize(("machine", "published", "source"), PUBLISHED, ids=lambda v: str(v)[:12])
def test_the_prediction_is_near_what_was_published(machine, published, source):
    assert speed(machine) == pytest.approx(published, rel=0.15), source


def test_the_prediction_stays_between_what_is_known_to_be_possible_and_the_floor():
    """One H100: faster than PyTorch's 435,000 on eight, and slower than the 694,000 at which all
    products run at the rate of a large one and all else at the bandwidth of a copy."""
    assert 435_000 < speed("h100") < 694_000
    # llm.c's CUDA on 8 A100 80 GB, scripts/run_gpt2_124M.sh: no PyTorch run is faster.
    assert speed("a100-80x8") < 218_000


def test_each_setting_that_is_known_to_be_faster_is_predicted_to_be():
    naive = ["--mixed_precision", "no", "--compile", "off", "--no_use_flash_attention"]
    naive += ["--optimizer", "adamw_foreach", "--micro_batch_size", "16"]
    ladder = [
        [*naive, "--tf32", "off"],
        [*naive, "--tf32", "on"],
        [*naive, "--mixed_precision", "bf16"],
        ["--compile", "off", "--micro_batch_size", "16", "--cross_entropy", "eager"],
        ["--bf16_residual", "off"],
        [],
        ["--cross_entropy", "triton"],
    ]
    rates = [speed("h100", *rung) for rung in ladder]
    assert rates == sorted(rates)
    assert 8 < rates[-1] / rates[0] < 14


def test_what_is_computed_again_costs_time():
    assert speed("h100", "--activation_checkpointing", "block") < 0.85 * speed("h100")
    assert speed("h100", "--activation_checkpointing", "gelu") < speed("h100")


# Arithmetic.


def test_time_energy_cost_and_disk_follow_from_the_speed():
    e = expected("a100-40x8", price=12.0)
    f, p = e.forecast, e.plan
    hours = p.max_tokens / f.tokens_per_second / 3600
    assert f.seconds == pytest.approx(3600 * hours)
    assert f.energy_kwh == pytest.approx(hours * 8 * 0.4)
    assert f.price == pytest.approx(12 * hours)
    assert f.mfu == pytest.approx(f.tokens_per_second * 798.0e6 / (8 * 312e12), rel=1e-3)
    assert sum(f.parts_ms.values()) == pytest.approx(f.step_ms)
    assert f.data_bytes == 2 * (e.facts.train_tokens + e.facts.val_tokens)
    assert (f.checkpoints, f.checkpoint_bytes) == (4, 12 * 124_439_808)
    assert (
        expected("a100-40", "--keep_checkpoints", "5", "--no_keep_best").forecast.checkpoints == 6
    )


def test_a_run_from_other_weights_keeps_the_milestone_of_step_0_too():
    steps = ["--max_steps", "100", "--milestone_every_steps", "50"]
    plan = expected("h100", *steps).plan
    runs = [load([*RECIPE, *steps, *more])[0] for more in ([], ["--init_from", "hf:gpt2"])]
    assert [checkpoints_kept(config, plan) for config in runs] == [4 + 2, 4 + 3]


def test_slow_links_are_felt_and_fast_ones_hidden():
    parts = expected("rtx3090x8", "--tokens_per_step", "8192").forecast.parts_ms
    # A ring sends 2 x 7/8 of the gradient; most of a backward hides part of it.
    assert 0 < parts["all-reduce"] < 1e3 * 2 * 7 / 8 * 4 * 124.5e6 / (0.8 * 32e9)
    assert "all-reduce" not in expected("h100x8").forecast.parts_ms


# Machines.


def test_every_machine_has_a_source_and_figures_in_order():
    for name, gpu in GPUS.items():
        assert gpu.source and gpu.shares[2], name
        assert gpu.half > gpu.tf32 >= gpu.fp32 > 1e12
        assert 1e11 < gpu.bandwidth < 1e13 and 50 < gpu.watts < 1500 and 1e10 < gpu.link < 1e12
        assert 10 < gpu.memory_bytes / 2**30 < 200
        assert gpu.bf16 or not gpu.fp8
        assert by_device_name(f"NVIDIA {gpu.device_name}") is gpu
        assert named(name) == (gpu, 1) and named(f"{name.upper()}x8") == (gpu, 8)


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40-pcie"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_what_pytorch_calls_a_gpu_is_found(reported, name):
    assert by_device_name(reported) is GPUS[name]


def test_a_gpu_that_is_in_no_table_has_no_peak():
    assert by_device_name("NVIDIA GeForce RTX 2070") is None


@pytest.mark.parametrize(
    "reported",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
    ],
)
def test_a_part_of_a_gpu_or_a_namesake_has_not_its_peak(reported):
    assert by_device_name(reported) is None


def test_no_utilisation_is_predicted_in_fp32_whose_peak_is_another():
    config, set_by = load(["--mixed_precision", "no"])
    predicted = expect_elsewhere(config, set_by, "h100", 0.0).forecast
    assert predicted.tokens_per_second and predicted.mfu is None
    assert by_device_name("NVIDIA T400") is None


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ("h10", "the nearest: h100, h100-nvl, h100-pcie"),
        ("rtx-4090", "the nearest: rtx4090"),
        ("a100", "the nearest: a100-40, a100-80, a100-40-pcie"),
        ("xyz", "no machine 'xyz' in the table; do: choose one of"),
        ("h100x0", "1 to 8 GPUs of one host"),
        ("h100x16", "1 to 8 GPUs of one host"),
        ("h100x" + "9" * 30, "1 to 8 GPUs of one host"),
        ("x8", "no machine 'x8'"),
        ("٣", "no machine"),
    ],
)
def test_an_unknown_machine_is_refused_in_one_line_with_the_nearest(machine, says, capsys):
    assert main(["plan", "--machine", machine]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[") and captured.err.count("\n") == 1
    assert says in captured.err


def test_a_gpu_and_a_cpu_at_once_are_refused():
    with pytest.raises(UsageError, match="--device is cpu"):
        expected("h100", "--device", "cpu")


def test_a_plan_for_elsewhere_takes_only_kernels_that_run_there():
    exact = expected("h100", "--deterministic", "on", "--mixed_precision", "no").plan
    assert exact.attention_backend not in ("flash", "cudnn", "flash_attn")
    with pytest.raises(UsageError, match=r"NO-ATTENTION.*flash needs compute capability 8\.0"):
        expected("t4", "--attention_backend", "flash")
    with pytest.raises(UsageError, match=r"NO-FLASH.*--mixed_precision fp16"):
        expected("t4", "--mixed_precision", "bf16", "--use_flash_attention")
    slow = expected("t4", "--mixed_precision", "bf16")
    assert slow.plan.attention_kernel == "MATH"
    assert slow.forecast.tokens_per_second < 0.5 * speed("t4")
    apart = expected("t4", "--document_mask").plan
    assert apart.attention_backend != "flex"


def test_a_plan_before_anything_is_prepared_says_what_it_assumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--model_size", "124M"]) == 0
    out = capsys.readouterr().out
    assert "data assumed to be OpenWebText" in out and "would prepare pydocs" in out
    assert not (tmp_path / "data").exists() and not (tmp_path / "runs").exists()


def test_a_plan_for_elsewhere_needs_no_data_and_says_what_it_assumes():
    e = expected("t4")
    assert e.facts.train_tokens == 9_035_582_198
    assert "assumed to be OpenWebText" in e.data
    assert "assumed to be mine, as large as OpenWebText" in expected("t4", "--dataset", "mine").data
    assert e.plan.mixed_precision == "fp16" and e.plan.attention_kernel == "EFFICIENT_ATTENTION"
    reasons = {c.setting: c.reason for c in e.plan.choices}
    assert "assumed" in reasons["compile"] and "assumed" in reasons["attention_backend"]
    assert expected("h100x8").plan.world_size == 8
    with pytest.raises(UsageError, match="no fp8 units"):
        expected("a100-80", "--fp8_head")
    assert speed("h100", "--fp8_head") > speed("h100")


@given(
    machine=st.sampled_from([f"{name}x{n}" for name in GPUS for n in (1, 8)]),
    size=st.sampled_from(["124M", "355M", "774M", "1558M"]),
    context=st.sampled_from([128, 1024, 2048]),
    flags=st.lists(
        st.sampled_from(
            [
                ("--no_use_flash_attention",),
                ("--mixed_precision", "no"),
                ("--compile", "off"),
                ("--cross_entropy", "eager"),
                ("--cross_entropy", "chunked"),
                ("--cross_entropy", "triton"),
                ("--activation_checkpointing", "block"),
                ("--activation_checkpointing", "gelu"),
                ("--optimizer", "adamw_foreach"),
                ("--bf16_residual", "off"),
                ("--dropout", "0.1"),
            ]
        ),
        max_size=4,
    ),
)
@settings(max_examples=40, deadline=None)
def test_no_choice_exceeds_the_memory_of_any_machine(machine, size, context, flags):
    argv = ["--model_size", size, "--context", str(context)]
    config, set_by = load(argv + [word for flag in flags for word in flag])
    try:
        e = expect_elsewhere(config, set_by, machine, 0.0)
    except OutOfMemory as error:
        assert "needs about" in str(error)
        return
    assert e.plan.predicted_memory_bytes <= e.machine.memory_bytes
    assert e.plan.tokens_per_step == 524_288
    assert e.forecast.tokens_per_second and math.isfinite(e.forecast.tokens_per_second)


# This machine.

MEASURED = Calibration("bf16", "2026-01-02", dict.fromkeys(calibration.MAPS, 2e11), 1e11, 2e10)


def test_a_calibration_is_what_the_prediction_stands_on():
    plan = expected("h100").plan
    rates, _ = rates_here(plan, GPUS["h100"], MEASURED)
    assert rates == measured_rates(MEASURED, plan, GPUS["h100"])
    assert rates.products["head"] == 2e11 and rates.bandwidth == 2e10
    assert "calibration of 2026-01-02" in rates.basis
    other, _ = rates_here(plan, GPUS["h100"], None)
    assert other is not None and other.basis.startswith("NVIDIA H100")


def test_a_machine_in_no_table_that_was_not_measured_gets_no_prediction_but_the_way_to_one():
    rates, why = rates_here(expected("h100").plan, None, None)
    assert rates is None
    assert "`outpace bench kernels --precision bf16`" in why


def write_calibration(**changes: object) -> None:
    gemm = {name: {"forward": 1e12, "dgrad": 2e12, "wgrad": 4e12} for name in calibration.MAPS}
    content = {
        "format": calibration.FORMAT, "device_name": "a CPU", "precision": "bf16", "date": "today",
        "gemm_flops_per_s": gemm, "attention_flops_per_s": None, "copy_bytes_per_s": 1e10,
    }  # fmt: skip
    content |= changes
    path = calibration.path("cpu", content["precision"], torch.get_num_threads())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


A_CPU = Machine("cpu", "a CPU", 2, 1 << 34, 1 << 34, True)


def test_a_calibration_is_read_back_with_the_passes_of_a_product_together():
    assert calibration.read(A_CPU, "bf16") is None
    write_calibration()
    found = calibration.read(A_CPU, "bf16")
    assert found is not None and found.attention is None
    assert found.products["qkv"] == pytest.approx(3 / (1 / 1e12 + 1 / 2e12 + 1 / 4e12))
    assert calibration.read(replace(A_CPU, device_name="another CPU"), "bf16") is None


def test_each_device_precision_and_number_of_threads_has_a_calibration_of_its_own():
    write_calibration(date="bf16")
    write_calibration(date="fp32", precision="no")
    assert [calibration.read(A_CPU, p).date for p in ("bf16", "no")] == ["bf16", "fp32"]
    assert calibration.read(A_CPU, "fp16") is None
    assert calibration.read(replace(A_CPU, device="cuda"), "bf16") is None
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert calibration.read(A_CPU, "bf16") is None
    finally:
        torch.set_num_threads(threads)
    assert calibration.path("cuda", "bf16", 1) == calibration.path("cuda", "bf16", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"gemm_flops_per_s": {}},
        {"gemm_flops_per_s": []},
        {"copy_bytes_per_s": None},
        {"copy_bytes_per_s": 0},
        {"copy_bytes_per_s": "fast"},
        {"attention_flops_per_s": -1},
    ],
    ids=str,
)
def test_a_calibration_that_does_not_hold_counts_as_none(changes):
    write_calibration(**changes)
    assert calibration.read(A_CPU, "bf16") is None
    calibration.path("cpu", "bf16", torch.get_num_threads()).write_text("{")
    assert calibration.read(A_CPU, "bf16") is None


# The command.


def test_the_plan_of_this_machine_is_predicted_from_its_calibration(tiny_dataset, capsys):
    argv = ["plan", "--dataset", str(tiny_dataset), "--device", "cpu", "--n_layer", "2"]
    argv += ["--mixed_precision", "no", "--max_steps", "3", "--compile", "off", "--json"]
    argv += ["--context", "64", "--tokens_per_step", "4096"]
    assert main(argv) == 0
    predicted = json.loads(capsys.readouterr().out)["predicted"]
    assert predicted["tokens_per_second"] is None and "bench kernels" in predicted["basis"]
    write_calibration(device_name=detect("cpu").device_name, precision="no")
    assert main(argv) == 0
    predicted = json.loads(capsys.readouterr().out)["predicted"]
    assert predicted["tokens_per_second"] > 0
    assert "this machine's calibration" in predicted["basis"]


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "1e9", "free"])
def test_a_price_that_cannot_be_is_refused(price, capsys):
    assert main(["plan", "--machine", "h100", "--price_per_hour", price]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("machine", "flags", "why"),
    [
        ("h100", "--fp8_head --mixed_precision fp16", "NO-FP8"),
        ("h100", "--fp8_head --vocab_multiple 1", "NO-FP8"),
        ("h100", "--n_embd 100 --n_head 25 --attention_backend flash", "NO-ATTENTION"),
        ("a100-80", "--n_head 1 --attention_backend cudnn", "NO-ATTENTION"),
        ("h100", "--n_embd 96 --n_head 12 --attention_backend flex", "NO-ATTENTION"),
        ("t4", "--attention_backend cudnn", "NO-ATTENTION"),
    ],
)
def test_what_the_run_would_refuse_there_the_plan_refuses(machine, flags, why, capsys):
    """As PyTorch answers on those GPUs (tests/standin)."""
    assert main(["plan", "--machine", machine, *flags.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error[{why}]")


def test_the_forecast_is_told_as_a_prediction(capsys):
    assert main(["plan", "--machine", "h100x8", "--price_per_hour", "20", *RECIPE]) == 0
    out = capsys.readouterr().out
    shown = out[out.index("predicted, not measured:") :]
    for word in ("speed", "a step", "rates", "time", "energy", "cost", "disk"):
        assert f"\n  {word} " in shown
    assert "on 8 x H100 (cuda, 79.65 GiB" in out
