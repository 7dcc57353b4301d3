"""The ladder: which settings its rungs stand for on any machine, what one process measures, what
follows from it, and that a rung which breaks the numerics does not pass."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outpace.bench import ladder, one_rung, rungs
from outpace.bench.ladder import Climb, climb, why_not
from outpace.bench.rungs import CPU, EQUAL, GPU, Rung
from outpace.config.load import load
from outpace.config.presets import GPT2Shape
from outpace.core.errors import NumericsError, OutpaceError, UsageError
from outpace.core.units import GIB
from outpace.data.shards import open_dataset
from outpace.runtime.hardware import Machine
from outpace.train.plan import Capabilities, DatasetFacts, Plan
from outpace.train.planner import make_plan

H100 = Machine("cuda", "NVIDIA H100 80GB HBM3", 16, 80 * GIB, 79 * GIB, True, 989.4e12, "sheet")
T4 = Machine("cuda", "Tesla T4", 8, 15 * GIB, 14 * GIB, False, 65e12, "sheet")
OLD_CPU = Machine("cpu", "a CPU with AVX2", 8, 24 * GIB, 20 * GIB, False)
NEW_CPU = replace(OLD_CPU, device_name="a CPU with AMX", bf16=True)


def able(fp8: str | None = None) -> Capabilities:
    def attention(backend: str, *_: object) -> tuple[str | None, str]:
        return None, "materialised" if backend in ("eager", "reference") else "CUDNN_ATTENTION"

    return Capabilities(
        attention=attention,
        compile_why_not=lambda: None,
        fastest_attention=lambda *_: ("cudnn", "made up"),
        fastest_cross_entropy=lambda *_: ("triton", "made up"),
        cross_entropy_why_not=lambda *_: None,
        fp8_why_not=lambda *_: fp8,
    )


def gpu_climb(tiny_dataset: Path, *names: str) -> Climb:
    shape = GPT2Shape(12, 12, 768, 1024, 50257)
    return Climb(shape, open_dataset(tiny_dataset), torch.device("cuda"), names)


def stacked(c: Climb, which: rungs.Ladder, machine: Machine, can: Capabilities):
    ask = why_not(c, machine, can)
    return rungs.cumulative(rungs.pick(which, c.rungs), rungs.fitting(which, ask), ask)


def planned(c: Climb, flags: rungs.Flags, machine: Machine) -> Plan:
    argv = rungs.argv(c.flags | flags | {"device": "auto"})
    config, set_by = load(argv)
    facts = DatasetFacts("owt", 50257, 10**10, 10**6)
    return make_plan(config, set_by, machine, facts, 1, able())


ASIDES = {"fp16", "fp8_head", "chunked_loss", "recomputed_gelu", "recomputed_blocks"}


def changes(c: Climb, settings: list[rungs.Setting], machine: Machine) -> dict[str, dict]:
    """What each rung changes in the plan of those before it."""
    before = vars(planned(c, settings[0].flags, machine))
    same = {"choices", "predicted_memory_bytes", "max_tokens", "epochs", "warnings"}
    found = {}
    for s in settings[1:]:
        now = vars(planned(c, s.flags, machine))
        found[s.name] = {k: v for k, v in now.items() if v != before[k] and k not in same}
        if s.name not in ASIDES:
            before = now
    return found


# Which settings the rungs stand for.


def test_every_rung_of_the_gpu_ladder_is_one_change_to_the_plan_on_an_h100(tiny_dataset):
    _, _, skipped = stacked(gpu_climb(tiny_dataset), GPU, H100, able())
    assert skipped.keys() == {"tuned"}, "it is measured where it is named"
    c = gpu_climb(tiny_dataset, *(r.name for r in GPU.rungs))
    settings, carried, skipped = stacked(c, GPU, H100, able())
    assert [s.name for s in settings] == [r.name for r in GPU.rungs] and not skipped
    lowest = planned(c, settings[0].flags, H100)
    assert (lowest.tokens_per_step, lowest.micro_batch_size) == (16_384, 16)
    assert (lowest.mixed_precision, lowest.tf32, lowest.compile) == ("no", False, False)
    assert (lowest.attention_backend, lowest.padded_vocab_size) == ("eager", 50257)
    found = changes(c, settings, H100)
    assert found["tf32"] == {"tf32": True}
    assert found["bf16"] == {"mixed_precision": "bf16"}
    assert found["fused_attention"] == {
        "attention_backend": "cudnn", "attention_kernel": "CUDNN_ATTENTION",
    }  # fmt: skip
    assert found["compile"] == {"compile": True, "cross_entropy": "compiled"}
    assert found["padded_vocabulary"]["padded_vocab_size"] == 50304
    assert found["fused_adamw"] == {}, "the optimiser is no part of the plan"
    assert found["micro_batch"] == {
        "micro_batch_size": 64, "gradient_accumulation_steps": 8, "tokens_per_step": 524_288,
    }  # fmt: skip
    assert found["bf16_residual"] == {"bf16_residual": True}
    assert found["fused_loss"] == {"cross_entropy": "triton"}
    assert found["tuned"] == {"compile_mode": "tuned"}
    assert found["fp8_head"] == {"fp8_head": True}
    assert found["chunked_loss"] == {"cross_entropy": "chunked"}
    assert [r.name for r in carried][-2:] == ["tuned", "micro_batch"], "asides are not carried"
    equal = planned(c, rungs.equal_tokens(carried, GPU).flags, H100)
    assert (equal.tokens_per_step, equal.compile_mode, equal.fp8_head) == (16_384, "tuned", False)
    low, top = rungs.best_micro_batch(carried, GPU)
    for setting in (*low, *top[:2]):
        plan = planned(c, setting.flags, H100)
        assert plan.tokens_per_step == 524_288
        assert plan.compile == (setting in top)
    assert top[1].flags == settings[-1].flags, "measured once"


def test_optimisers_of_both_ends():
    carried = [r for r in GPU.rungs if not r.aside]
    assert rungs.stack(carried[:1], GPU)["optimizer"] == "adamw_foreach"
    assert rungs.stack(carried, GPU)["optimizer"] == "adamw"


def test_what_a_machine_lacks_is_left_out_with_what_builds_on_it(tiny_dataset):
    settings, carried, skipped = stacked(gpu_climb(tiny_dataset), GPU, T4, able(fp8="no fp8 units"))
    assert "Tesla T4 has no TF32" in skipped["tf32"]
    assert "Tesla T4 has no bf16" in skipped["bf16"]
    assert skipped["bf16_residual"] == "it needs the rung bf16"
    names = [r.name for r in carried]
    assert names[1] == "fp16", "where there is no bf16, fp16 is carried on"
    assert settings[0].flags["micro_batch_size"] == 4, "the largest that fits"
    assert "GiB" in skipped["micro_batch"]
    top = next(s for s in settings if s.name == "fused_adamw")
    assert top.flags["mixed_precision"] == "fp16"
    _, _, skipped = stacked(gpu_climb(tiny_dataset), GPU, H100, able(fp8="no fp8 units"))
    assert skipped.pop("tuned") and skipped == {"fp8_head": "no fp8 head: no fp8 units"}


def test_a_cpu_without_bf16_units_leaves_bf16_out_unless_it_was_named(tiny_dataset):
    c = tiny_climb(tiny_dataset)
    skipped = stacked(c, CPU, OLD_CPU, able())[2]
    assert skipped.keys() == {"bf16", "bf16_residual"} and "AMX" in skipped["bf16"]
    assert not stacked(c, CPU, NEW_CPU, able())[2]
    named = replace(c, rungs=("bf16",))
    settings, _, skipped = stacked(named, CPU, OLD_CPU, able())
    assert [s.name for s in settings] == ["fp32_eager", "bf16"] and not skipped


def test_leave_one_out_takes_a_rung_away_and_what_needs_it():
    carried = [r for r in GPU.rungs if not r.aside]
    top = rungs.stack(carried, GPU)
    found = {s.name: s for s in rungs.leave_one_out(carried, GPU)}
    assert len(found) == len(carried) - 1
    without = found["without bf16"].flags
    assert (without["mixed_precision"], without["bf16_residual"]) == ("no", "off")
    assert without["tf32"] == "on" and without["compile"] == "on"
    assert "bf16_residual" in found["without bf16"].sentence
    assert found["without tuned"].flags == {k: v for k, v in top.items() if k != "compile_mode"}
    assert found["without fused_loss"].flags["cross_entropy"] == "compiled"


@pytest.mark.parametrize("which", [GPU, CPU], ids=["GPU", "CPU"])
def test_losses_are_compared_on_the_same_tokens(which, tiny_dataset):
    c = gpu_climb(tiny_dataset)
    machine = H100 if which is GPU else NEW_CPU
    settings, carried, _ = stacked(c, which, machine, able())
    tokens = {
        planned(c, rungs.drift_flags(s, which), machine).tokens_per_step
        for s in (*settings, rungs.equal_tokens(carried, which))
    }
    assert tokens == {which.micro_batch_size * 1024}


def test_a_mistyped_rung_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as refused:
        rungs.pick(GPU, ["bf61"])
    assert "did you mean bf16?" in str(refused.value)
    assert [r.name for r in rungs.pick(GPU, ["compile", "tf32"])] == [
        "fp32_eager", "tf32", "compile",
    ]  # fmt: skip
    assert "tuned" not in [r.name for r in rungs.pick(GPU, [], ["tuned"])]
    with pytest.raises(UsageError, match="did you mean tuned"):
        rungs.pick(GPU, [], ["tunned"])


# What is measured, at a size of seconds.


def tiny_climb(tiny_dataset: Path, *names: str) -> Climb:
    dataset = open_dataset(tiny_dataset)
    shape = GPT2Shape(2, 2, 32, 32, dataset.vocab_size)
    return Climb(shape, dataset, torch.device("cpu"), names, (), False, 6, 0.0, 0.02, 5.0)


@pytest.fixture
def here(monkeypatch):
    """Measure in this process: a new one takes seconds to start."""

    def measure(folder: Path, limit_s: float) -> dict:
        job = one_rung.RungJob(**json.loads((folder / "job.json").read_text()))
        return one_rung.measure(job)

    monkeypatch.setattr(ladder, "_in_a_process", measure)


def small_ladder(monkeypatch, *more: Rung) -> None:
    chosen = [r for r in CPU.rungs if r.name in ("fp32_eager", "fused_attention")]
    batch = Rung("micro_batch", "accumulated", rungs.accumulated(4, 512))
    made = replace(
        CPU, rungs=(*chosen, batch, *more), tokens_per_step=512, first_best=(4,), top_best=(4, 8)
    )
    monkeypatch.setitem(ladder.BY_DEVICE, "cpu", made)


def test_the_ladder_is_climbed_and_both_numbers_follow_from_its_rows(
    here, monkeypatch, tiny_dataset, tmp_path, capsys
):
    chunked = Rung("chunked_loss", "in chunks", {"cross_entropy": "chunked"}, aside=True)
    small_ladder(monkeypatch, chunked)
    c = replace(tiny_climb(tiny_dataset), leave_one_out=True)
    path = climb(c, OLD_CPU, able(), tmp_path / "new" / "ladder.json")
    body = json.loads(path.read_text())
    rows = {r["name"]: r for r in body["rungs"]}
    assert list(rows) == ["fp32_eager", "fused_attention", "micro_batch", "chunked_loss"]
    for r in rows.values():
        assert len(r["windows_ms"]) in (2, 3) and r["peak_memory_bytes"] > 2**20
        assert r["step_ms"]["p20"] <= r["step_ms"]["median"] <= r["step_ms"]["p80"]
        rate = 1e3 * r["tokens_per_step"] / r["step_ms"]["median"]
        assert r["tokens_per_second"] == pytest.approx(rate)
        assert len(r["losses"]) == 6 and r["losses"][-1] < r["losses"][0]
        assert abs(r["drift"]) <= r["drift_limit"] == ladder.DRIFT_LIMIT["fp32"]
        assert 0.3 < sum(k["share"] for k in r["kernels"]) <= 1.001
    assert rows["fp32_eager"]["attention"] == "eager (materialised under autocast)"
    assert rows["fp32_eager"]["tokens_per_step"] == 4 * 32
    assert rows["micro_batch"]["tokens_per_step"] == 512
    assert any("flash" in k["name"] for k in rows["fused_attention"]["kernels"])
    assert not any("flash" in k["name"] for k in rows["fp32_eager"]["kernels"])
    equal, best = body["numbers"]["equal_tokens"], body["numbers"]["best_micro_batch"]
    top = rows["fused_attention"]["tokens_per_second"]
    assert equal["ratio"] == pytest.approx(top / rows["fp32_eager"]["tokens_per_second"])
    assert equal["tokens_per_step"] == [128, 128]
    tops = body["best_micro_batch"]["top"]
    assert best["tokens_per_second"][0] == max(r["tokens_per_second"] for r in tops)
    assert {r["tokens_per_step"] for r in tops} == {512}
    assert [r["name"] for r in body["leave_one_out"]] == [
        "without fused_attention", "without micro_batch",
    ]  # fmt: skip
    assert "times the lowest rung at equal tokens" in capsys.readouterr().out
    assert not list(tmp_path.glob("outpace-ladder-*"))


def test_a_rung_that_changes_the_result_does_not_pass(here, monkeypatch, tiny_dataset, tmp_path):
    small_ladder(monkeypatch, Rung("wrong", "another learning rate", {"lr": 6e-3}))
    with pytest.raises(NumericsError) as wrong:
        c = tiny_climb(tiny_dataset, "fused_attention", "wrong")
        climb(c, OLD_CPU, able(), tmp_path / "ladder.json")
    assert wrong.value.name == "DRIFT" and wrong.value.exit_code == 6
    assert "wrong (" in str(wrong.value) and "top at equal tokens (" in str(wrong.value)
    assert "fused_attention" not in str(wrong.value)
    rows = json.loads((tmp_path / "ladder.json").read_text())["rungs"]
    assert [r["name"] for r in rows] == ["fp32_eager", "fused_attention", "wrong"]


def test_a_loss_that_is_no_number_does_not_pass(tmp_path):
    lowest = {"name": "low", "loss": 3.0, "drift": 0.0, "drift_limit": 1.0}
    point = {"name": "x", "drift": None, "drift_limit": 1.0}
    path = tmp_path / "l.json"
    with pytest.raises(NumericsError, match=r"x \(not finite\)"):
        ladder._raise_faults([], {"rungs": [lowest, point], "equal_tokens": None}, tmp_path, path)
    body = {"rungs": [{"name": "low"}, point], "equal_tokens": None}
    ladder._raise_faults([], body, tmp_path, path)  # the lowest rung has no loss to compare with


def test_without_time_a_point_is_left_out_and_said_to_be(
    here, monkeypatch, tiny_dataset, tmp_path, capsys
):
    small_ladder(monkeypatch)
    c = replace(tiny_climb(tiny_dataset), minutes=1e-6)
    body = json.loads(climb(c, OLD_CPU, able(), tmp_path / "l.json").read_text())
    assert all(r["no_time"] for r in body["rungs"])
    assert body["numbers"] == {"equal_tokens": None, "best_micro_batch": None}
    assert "no time left (--minutes)" in capsys.readouterr().err


def test_a_second_call_goes_on_where_the_first_ran_out_of_time(
    here, monkeypatch, tiny_dataset, tmp_path, capsys
):
    small_ladder(monkeypatch)
    c, path = tiny_climb(tiny_dataset), tmp_path / "l.json"
    first = json.loads(climb(c, OLD_CPU, able(), path).read_text())
    kept = dict(list(first["points"].items())[:2])
    path.write_text(json.dumps(first | {"points": kept}))
    again = json.loads(climb(replace(c, resume=True), OLD_CPU, able(), path).read_text())
    assert again["points"].keys() == first["points"].keys()
    same = [key for key in kept if again["points"][key] == first["points"][key]]
    assert same == [*kept] and again["points"] != first["points"]
    assert "points are in" in capsys.readouterr().out
    other = replace(c, resume=True, drift_steps=c.drift_steps + 1)
    anew = json.loads(climb(other, OLD_CPU, able(), path).read_text())
    assert not anew["points"].keys() & first["points"].keys()


def test_one_process_measures_until_its_time_is_up(tiny_dataset, tmp_path):
    c = tiny_climb(tiny_dataset)
    flags = rungs.argv(c.flags | rungs.stack(CPU.rungs[:1], CPU))
    job = one_rung.RungJob(flags, flags, 2, 0.0, 0.01, 3, str(tmp_path / "result.json"))
    (tmp_path / "job.json").write_text(json.dumps(vars(job)))
    result = ladder._in_a_process(tmp_path, 60)
    assert len(result["losses"]) == 2 and result["step_ms"]["n"] in (2, 3)
    assert ladder._in_a_process(tmp_path, 0.01) == {"no_time": True}


def test_a_setting_that_cannot_be_is_skipped_with_its_reason(tiny_dataset, tmp_path):
    c = tiny_climb(tiny_dataset)
    for more, says in (
        ({"cross_entropy": "triton"}, "need a CUDA GPU"),
        ({"tokens_per_step": 2**20, "gradient_accumulation_steps": "auto"}, "a step needs"),
    ):
        flags = rungs.argv(c.flags | rungs.stack(CPU.rungs[:1], CPU) | more)
        result = one_rung.measure(one_rung.RungJob(flags, None, 0, 0.0, 0.01, 3, ""))
        assert says in result["skipped"]


def test_a_process_that_failed_is_told_after_all_is_written(monkeypatch, tiny_dataset, tmp_path):
    small_ladder(monkeypatch)
    monkeypatch.setattr(ladder, "_in_a_process", lambda *_: {"failed": "it ended with 1: oops"})
    with pytest.raises(OutpaceError) as failed:
        climb(tiny_climb(tiny_dataset), OLD_CPU, able(), tmp_path / "l.json")
    assert failed.value.name == "RUNG-FAILED" and "oops" in str(failed.value)
    assert (tmp_path / "l.json").exists()


def test_names_are_unique():
    for which in (GPU, CPU):
        names = [r.name for r in which.rungs]
        assert len(set(names)) == len(names) and EQUAL not in names
