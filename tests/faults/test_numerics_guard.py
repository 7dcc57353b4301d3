"""Bad numbers: a step that is not finite changes nothing, on no process; spikes are found, also
after what is not finite; a run that stays bad goes back and on behind the data, and gives up in the
end; whatever interrupts it decides the same again."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import poison
import pytest
import torch
from conftest import TINY, final_hash
from harness import (
    assert_nothing_lost,
    assert_steps_stand_once,
    call,
    events,
    logged,
    rollbacks,
    start,
    status,
)
from peers import call_ranks
from safetensors.torch import load_file
from trials_resume import hashes, newest

from outpace.checkpoint import store
from outpace.config.presets import GPT2Shape
from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder
from outpace.data.loader import BatchShape, Loader
from outpace.data.mixture import Mixture
from outpace.data.order import OrderSpec
from outpace.data.shards import open_dataset
from outpace.model.gpt2 import GPT2
from outpace.ops.cross_entropy import IGNORE, cross_entropy_sum
from outpace.tools.replay import replay
from outpace.train.save import checksum


def command(dataset: Path, run: Path, *extra: str, steps: int = 12) -> list[str]:
    return [
        "train", *TINY, "--dataset", str(dataset), "--run_dir", str(run), "--max_steps", str(steps),
        "--save_every_steps", "1", "--keep_checkpoints", "1000", "--eval_every_steps", "0", *extra,
    ]  # fmt: skip


def skipped(run: Path) -> list[int]:
    return [r["step"] for r in read_json_lines(run / "metrics.jsonl") if r["skipped"]]


def kinds(run: Path) -> list[tuple[int, str]]:
    """(step, what was bad) of each incident."""
    return [(e["step"], e["bad"]) for e in events(run, "bad numbers")]


def assert_batch_kept(
    run: Path,
    dataset: Path,
    step: int,
    data_step: int,
    ranks: int = 1,
    accumulation: int = 2,
    lineage: int = 0,
) -> None:
    """The incident of `step` holds the tokens of that place in the order of the data."""
    folder = RunFolder(run).incidents / store.name_of(step, lineage)
    assert json.loads((folder / "incident.json").read_text())["data_step"] == data_step
    for rank in range(ranks):
        shape = BatchShape(2, accumulation, rank, ranks)
        cpu = torch.device("cpu")
        loader = Loader(Mixture.of([open_dataset(dataset)]), shape, OrderSpec(32, 1337), device=cpu)
        kept = load_file(folder / f"process-{rank}.safetensors")
        assert len(kept) == accumulation
        for micro_step in range(accumulation):
            batch = loader.micro_batch(data_step, micro_step)
            assert torch.equal(kept[f"{batch.position:06d}"].long(), batch.tokens)


# N1 to N3: not finite.


def assert_step_7_changes_nothing(
    dataset: Path, run: Path, fault: Callable[..., None], factor: float
) -> list[float | None]:
    """Neither weights nor moments: the checkpoints before and after it hold the same bits. Returns
    the losses."""
    child = call(*command(dataset, run), cwd=run.parent, setup=fault, args=((7,), factor))
    assert child.code == 0, child.err
    assert skipped(run) == [7] and kinds(run) == [(7, "not finite")]
    assert "[NOT-FINITE] step 7" in child.err and "not applied" in child.err
    found = hashes(run)
    assert found[7] == found[6] and len(set(found.values())) == 11, "all others differ"
    assert_batch_kept(run, dataset, step=7, data_step=6)
    assert_nothing_lost(run)
    return [r["loss"] for r in read_json_lines(run / "metrics.jsonl")]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_n1_one_gradient_that_is_not_finite_changes_nothing(tiny_dataset, tmp_path, factor):
    run = tmp_path / "run"
    losses = assert_step_7_changes_nothing(tiny_dataset, run, poison.gradient, factor)
    assert None not in losses, "the loss was not what was bad"


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_n2_a_loss_that_is_not_finite_changes_nothing(tiny_dataset, tmp_path, factor):
    run = tmp_path / "run"
    losses = assert_step_7_changes_nothing(tiny_dataset, run, poison.loss, factor)
    assert losses.index(None) == 6, "JSON has no such number"


def test_n2_the_first_step_too_and_the_last(tiny_dataset, tmp_path):
    """Before there are any moments: weights as the seed made them, and training goes on. And where
    no step comes behind it."""
    run = tmp_path / "run"
    child = call(*command(tiny_dataset, run), cwd=tmp_path, setup=poison.loss, args=((1, 12),))
    assert child.code == 0 and skipped(run) == [1, 12]
    assert kinds(run) == [(1, "not finite"), (12, "not finite")]
    first, second = (
        load_file(run / "checkpoints" / store.name_of(step, 0) / store.MODEL) for step in (1, 2)
    )
    assert all(torch.isfinite(t).all() for t in first.values())
    assert any(not torch.equal(first[name], second[name]) for name in first)
    losses = [r["loss"] for r in read_json_lines(run / "metrics.jsonl")]
    assert losses[-2] < losses[1]


@pytest.mark.parametrize("what", [poison.gradient, poison.loss], ids=["gradient", "loss"])
def test_n3_of_one_process_alone_skips_on_both(tiny_dataset, tmp_path, what):
    """Replicas stay the same bits: each save compares them, and training goes on to its end."""
    run = tmp_path / "run"
    arguments = [
        *command(tiny_dataset, run), "--gradient_accumulation_steps", "1",
        "--tokens_per_step", "128",
    ]  # fmt: skip
    ranks = call_ranks(2, *arguments, cwd=tmp_path, setup=what, args=((7,), math.nan, 1))
    assert [r.code for r in ranks] == [0, 0], ranks[0].err + ranks[1].err
    assert skipped(run) == [7] and kinds(run) == [(7, "not finite")]
    found = hashes(run)
    assert found[7] == found[6] != found[8]
    assert_batch_kept(run, tiny_dataset, step=7, data_step=6, ranks=2, accumulation=1)


# N4: bad for longer.

WINDOW = (poison.loss_of_data, (20, 21, 22, 23, 24))
BACK = ("--max_skipped_steps", "3", "--save_every_steps", "5")


@pytest.fixture(scope="module")
def rolled_back(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps, the data of five of which gives NaN."""
    folder = tmp_path_factory.mktemp("rolled-back")
    child = call(
        *command(tiny_dataset, folder / "run", *BACK, steps=40),
        cwd=folder,
        setup=WINDOW[0],
        args=WINDOW[1:],
    )
    assert child.code == 0, child.err
    assert child.err.count("[ROLLBACK]") == 1, child.err
    return folder / "run"


def test_n4_a_stretch_of_bad_data_is_left_behind(rolled_back, tiny_dataset, tmp_path):
    """Steps 21 to 23 are bad, so the run returns to step 10, 10 good steps before them, and goes on
    with the data behind step 23; what is bad of that is skipped, and the end is reached."""
    (event,) = events(rolled_back, "rollback")
    assert (event["back_to"], event["first_bad_step"], event["step"]) == (10, 21, 23)
    assert event["data_shift"] == 13
    assert_steps_stand_once(rolled_back)
    assert logged(rolled_back) == 40 and skipped(rolled_back) == [11, 12]
    assert_batch_kept(rolled_back, tiny_dataset, step=12, data_step=24, lineage=1)
    assert_nothing_lost(rolled_back)
    names = [p.name for p in store.paths(RunFolder(rolled_back).checkpoints)]
    assert names[-1] == "step-00000040-r1" and "step-00000015-r1" in names
    losses = [r["loss"] for r in read_json_lines(rolled_back / "metrics.jsonl")]
    assert losses[-1] < losses[9] < losses[0]


def test_n4_a_rollback_that_is_killed_ends_in_the_same_bits(rolled_back, tiny_dataset, tmp_path):
    """Among the bad steps, right behind the rollback, and behind its first checkpoint."""
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, *BACK, steps=40)
    slow = ((poison.slow_steps, 0.03), WINDOW)
    checkpoint = RunFolder(run).checkpoints
    moments = [
        lambda: logged(run) >= 22,
        lambda: bool(events(run, "rollback")) and logged(run) >= 12,
        lambda: (checkpoint / store.name_of(15, 1)).exists(),
    ]
    for moment in moments:
        child = start(*arguments, cwd=tmp_path, setup=poison.all_of, args=slow)
        child.until(moment)
        child.kill()
        assert child.code == -signal.SIGKILL
        assert_nothing_lost(run)
    child = call(*arguments, cwd=tmp_path, setup=WINDOW[0], args=WINDOW[1:])
    assert child.code == 0, child.err
    assert final_hash(run) == final_hash(rolled_back)
    assert hashes(run)[40] == hashes(rolled_back)[40]
    assert_steps_stand_once(run)
    keys = ("step", "loss", "skipped")
    got, want = (
        [[r[k] for k in keys] for r in read_json_lines(folder / "metrics.jsonl")]
        for folder in (run, rolled_back)
    )
    assert got == want


def test_n4_always_bad_gives_up_after_its_rollbacks(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, *BACK, "--max_rollbacks", "2", steps=60)
    options = {"cwd": tmp_path, "setup": poison.loss, "args": (range(21, 1000),)}
    child = call(*arguments, **options)
    assert child.code == 6, child.err
    assert "error[NON-FINITE]" in child.err and "rolled back 2 times" in child.err
    assert "kept: " in child.err and "--lr" in child.err and "Traceback" not in child.err
    assert len(events(run, "rollback")) == 2
    record = status(run)
    assert (record["state"], record["code"], record["resumable"]) == ("failed", 6, True)
    assert_nothing_lost(run)
    for path in store.paths(RunFolder(run).checkpoints):
        assert all(torch.isfinite(t).all() for t in load_file(path / store.MODEL).values())
    again = call(*arguments, **options)
    assert again.code == 6, "and says so again when it is started again"
    healed = call(*arguments, cwd=tmp_path)
    assert healed.code == 0 and logged(run) == 60, "what made it bad was removed"


def test_n4_several_processes_go_back_together(tiny_dataset, tmp_path):
    """To what the run has saved since it began, by the name that one of them made up for it."""
    run = tmp_path / "run"
    arguments = [
        *command(tiny_dataset, run, *BACK, "--max_rollbacks", "1", steps=30),
        "--gradient_accumulation_steps", "1", "--tokens_per_step", "128",
    ]  # fmt: skip
    ranks = call_ranks(2, *arguments, cwd=tmp_path, setup=poison.loss, args=(range(21, 99),))
    assert [r.code for r in ranks] == [6, 6], ranks[0].err + ranks[1].err
    assert rollbacks(run) == [10]


def test_n4_back_at_the_initial_weights_their_loss_is_no_spike(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    flags = ("--save_every_steps", "0", "--max_skipped_steps", "2", "--lr", "1e-2")
    flags += ("--skip_spikes", "--spike_threshold", "10")
    child = call(
        *command(tiny_dataset, run, *flags, steps=60), cwd=tmp_path,
        setup=poison.loss_of_data, args=((50, 51),),
    )  # fmt: skip
    assert child.code == 0, child.err
    assert rollbacks(run) == [0] and kinds(run) == [(51, "not finite"), (52, "not finite")]


def test_n4_bad_from_the_first_step_returns_to_the_initial_weights(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, *BACK, "--max_rollbacks", "1", steps=12)
    child = call(*arguments, cwd=tmp_path, setup=poison.loss_of_data, args=((0, 1, 2),))
    assert child.code == 0, child.err
    (event,) = events(run, "rollback")
    assert (event["back_to"], event["path"], event["data_shift"]) == (0, "the initial weights", 3)
    assert logged(run) == 12 and skipped(run) == []


def test_n4_a_learning_rate_that_diverges(tiny_dataset, tmp_path):
    """Nothing put in from outside: a hundred, without clipping."""
    run = tmp_path / "run"
    extra = ("--lr", "100", "--warmup_steps", "0", "--grad_clip", "0", "--weight_decay", "100")
    arguments = command(tiny_dataset, run, *extra, "--save_every_steps", "3", steps=400)
    child = call(*arguments, cwd=tmp_path)
    assert child.code == 6 and "error[NON-FINITE]" in child.err, child.out + child.err
    assert status(run)["code"] == 6
    assert store.latest(RunFolder(run).checkpoints) is not None


# N5 to N7: spikes, what follows what is not finite, and fp16.


def test_n5_a_spike_is_recorded_and_does_not_count_as_normal(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, steps=50)
    child = call(*arguments, cwd=tmp_path, setup=poison.loss, args=((45,), 20.0))
    assert child.code == 0, child.err
    assert kinds(run) == [(45, "spike")] and skipped(run) == []
    assert "[SPIKE] step 45" in child.err and "not applied" not in child.err
    assert hashes(run)[45] != hashes(run)[44]
    policy = json.loads((run / "checkpoints/step-00000049/state.json").read_text())["policy"]
    losses = [r["loss"] for r in read_json_lines(run / "metrics.jsonl")]
    assert policy["losses"] == [*losses[:44], *losses[45:48]] and policy["pending"][0] == 49
    assert_batch_kept(run, tiny_dataset, step=45, data_step=44)


def test_n5_with_skip_spikes_it_is_not_applied(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    arguments = command(tiny_dataset, run, "--skip_spikes", steps=50)
    child = call(*arguments, cwd=tmp_path, setup=poison.loss, args=((45,), 20.0))
    assert child.code == 0 and kinds(run) == [(45, "spike")] and skipped(run) == [45]
    assert hashes(run)[45] == hashes(run)[44] != hashes(run)[46]


def test_n6_a_spike_is_found_after_what_is_not_finite(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    child = call(
        *command(tiny_dataset, run, steps=50),
        cwd=tmp_path,
        setup=poison.all_of,
        args=((poison.gradient, (40,)), (poison.loss, (41,)), (poison.loss, (45,), 20.0)),
    )
    assert child.code == 0, child.err
    assert kinds(run) == [(40, "not finite"), (41, "not finite"), (45, "spike")]


def test_n7_an_overflow_lowers_the_scale_and_one_without_end_stops(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    fp16 = ("--mixed_precision", "fp16", "--save_every_steps", "5")
    arguments = command(tiny_dataset, run, *fp16, steps=300)
    child = call(*arguments, cwd=tmp_path, setup=poison.loss, args=((3, *range(21, 400)), 1e38))
    assert child.code == 6 and "--mixed_precision bf16" in child.err, child.err
    scales = {r["step"]: r["loss_scale"] for r in read_json_lines(run / "metrics.jsonl")}
    assert scales[3] == scales[2] / 2 == scales[20], "half, once"
    assert len(events(run, "rollback")) == 2
    assert len(kinds(run)) <= 3 * 30 + 1, "not without end"
    assert_nothing_lost(run)


# N8, N9.


def test_n8_a_batch_whose_targets_are_all_masked_weighs_nothing(tiny_dataset):
    """The step divides a sum by the batch's positions, so that there is no 0 / 0: loss and gradient
    are 0, and a half-masked batch gives the other half's. A dataset cannot mask anything: its
    tokens have no sign, and each window gives a whole batch of targets."""
    leaf = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = leaf * 1
    loss = cross_entropy_sum(logits, torch.full((6,), IGNORE), 257)
    loss.backward()
    assert loss.item() == 0 and leaf.grad is not None and not leaf.grad.any()
    half = torch.tensor([1, 2, 3, IGNORE, IGNORE, IGNORE])
    logits = logits.detach()
    alone = -sum(float(logits[i, :257].log_softmax(-1)[half[i]]) for i in range(3))
    assert cross_entropy_sum(logits.clone(), half, 257).item() == pytest.approx(alone, rel=1e-6)

    cpu = torch.device("cpu")
    mixture = Mixture.of([open_dataset(tiny_dataset)])
    loader = Loader(mixture, BatchShape(2, 1), OrderSpec(32, 0), device=cpu)
    for step in range(20):
        targets = loader.micro_batch(step, 0).targets
        assert targets.numel() == 64 and int(targets.min()) >= 0 and int(targets.max()) < 257


def test_n9_any_one_bit_changes_the_checksum():
    model = GPT2(GPT2Shape(2, 2, 32, 32, 257))
    model.init_weights(torch.Generator().manual_seed(0))
    before = checksum(model)
    for p in model.parameters():
        bits = p.detach().view(-1).view(torch.int32)
        for bit in range(32):
            flip = torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
            bits[-1] ^= flip
            assert checksum(model) != before, (tuple(p.shape), bit)
            bits[-1] ^= flip
    assert checksum(model) == before and 0 <= before < 1 << 63


def test_n9_replicas_that_differ_are_found_before_they_are_saved(tiny_dataset, tmp_path):
    """One bit of one weight of the second process, after step 4: the next save, of step 6, is not
    made. Run again, it goes on from step 3 and ends as if nothing had been."""
    batch = ("--gradient_accumulation_steps", "1", "--tokens_per_step", "128")
    every = (*batch, "--save_every_steps", "3")
    run, reference = tmp_path / "run", tmp_path / "straight"
    ranks = call_ranks(2, *command(tiny_dataset, reference, *every), cwd=tmp_path)
    assert [r.code for r in ranks] == [0, 0], ranks[0].err
    arguments = command(tiny_dataset, run, *every)
    ranks = call_ranks(2, *arguments, cwd=tmp_path, setup=poison.replica, args=(4, 1))
    assert [r.code for r in ranks] == [9, 9], ranks[0].err + ranks[1].err
    assert "error[DIVERGED-REPLICAS]" in ranks[0].err
    assert newest(run) == 3 and status(run)["code"] == 9 and status(run)["resumable"]
    ranks = call_ranks(2, *arguments, cwd=tmp_path)
    assert [r.code for r in ranks] == [0, 0], ranks[0].err
    assert hashes(run) == hashes(reference) and final_hash(run) == final_hash(reference)


def test_a_batch_that_cannot_be_kept_does_not_stop_training(tiny_dataset, tmp_path):
    """safetensors has an error of its own for what the disk does not take."""
    run = tmp_path / "run"
    kept = RunFolder(run).incidents / store.name_of(7, 0)
    (kept / "process-0.safetensors").mkdir(parents=True)
    child = call(*command(tiny_dataset, run), cwd=tmp_path, setup=poison.loss, args=((7,),))
    assert child.code == 0 and "the batch of step 7 could not be kept" in child.err
    assert kinds(run) == [(7, "not finite")]


def test_a_batch_is_run_again_with_other_weights_than_the_runs_own(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    assert call(
        *command(tiny_dataset, run), cwd=tmp_path, setup=poison.loss, args=((7,),)
    ).code == 0  # fmt: skip
    model = tmp_path / "other"
    shutil.copytree(run / "checkpoints" / store.name_of(9, 0), model)
    shutil.rmtree(run / "checkpoints")
    refused = call("replay", run, cwd=tmp_path)
    assert refused.code == 2 and "choose a model with --model" in refused.err
    told = call("replay", run, "--model", model, cwd=tmp_path)
    assert told.code == 0 and "because no older ones are left" not in told.out
    record = json.loads(call("replay", run, "--model", model, "--json", cwd=tmp_path).out)
    assert record["weights"] == str(model)
    assert all(math.isfinite(r["loss"]) for r in record["replays"])


def test_a_batch_of_an_abandoned_branch_is_run_again_with_weights_of_before_it(
    rolled_back, tmp_path
):
    """The branch that was taken instead has newer ones of the same steps, trained on other data."""
    there = [p.name for p in store.paths(RunFolder(rolled_back).checkpoints)]
    assert "step-00000020" in there and "step-00000020-r1" in there, "the premise of this test"
    record = json.loads(call("replay", rolled_back, "--step", "21", "--json", cwd=tmp_path).out)
    assert record["weights"].endswith("step-00000020")


def test_a_batch_that_was_kept_by_fewer_processes_than_before_is_run_again_alone(
    tiny_dataset, tmp_path
):
    run = tmp_path / "run"
    bad = {"cwd": tmp_path, "setup": poison.all_of, "args": ((poison.loss, (7,)),)}
    batch = ["--gradient_accumulation_steps", "1", "--micro_batch_size"]
    ranks = call_ranks(2, *command(tiny_dataset, run), *batch, "2", **bad)
    assert [r.code for r in ranks] == [0, 0], ranks[0].err
    for path in store.paths(RunFolder(run).checkpoints)[5:]:
        shutil.rmtree(path)
    assert call(*command(tiny_dataset, run), *batch, "4", **bad).code == 0
    assert "; 4 sequences of 32 tokens" in call("replay", run, cwd=tmp_path).out


def test_replay_in_fp16_has_the_gradient_of_fp32_however_large_the_batch(tiny_dataset, tmp_path):
    """A mean over so many targets has gradients that fp16 would round to nothing."""
    run = tmp_path / "run"
    assert call(*command(tiny_dataset, run, steps=1), cwd=tmp_path).code == 0
    tokens = torch.randint(257, (1000, 33), generator=torch.Generator().manual_seed(0))
    model = str(run / "checkpoints" / store.name_of(1, 0))
    exact, half = (replay(model, tokens, torch.device("cpu"), p) for p in ("no", "fp16"))
    assert half.grad_norm == pytest.approx(exact.grad_norm, rel=1e-3)


def test_json_has_no_number_that_is_not_finite(tiny_dataset, tmp_path):
    run = tmp_path / "run"
    assert call(
        *command(tiny_dataset, run), cwd=tmp_path, setup=poison.loss, args=((7,),)
    ).code == 0  # fmt: skip
    path = run / "checkpoints" / store.name_of(9, 0)
    good = store.load(path)
    weights = good.model()
    weights["wte.weight"][:] = 3e38
    model = store.save(tmp_path, 1, {store.MODEL: weights}, good.state)
    done = call("replay", run, "--model", model, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out, parse_constant=pytest.fail)["replays"][0]["loss"] is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--seed", "7"], "seed: 1337 -> 7"),
        (["--eval_every_steps", "3"], "eval_every_steps"),
        (["--hellaswag_limit", "8"], "hellaswag_limit"),
        (["--max_skipped_steps", "3"], "max_skipped_steps"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_processes_that_were_given_something_else_are_refused(flags, named, tiny_dataset, tmp_path):
    """Before the first step: the sums of their gradients would be of different things, and one
    would wait for a sum of an evaluation that the other does not make."""
    arguments = [
        *command(tiny_dataset, tmp_path / "run"), "--gradient_accumulation_steps", "1",
        "--tokens_per_step", "128",
    ]  # fmt: skip
    ranks = call_ranks(2, *arguments, cwd=tmp_path, setup=poison.flags_of, args=(1, flags))
    assert [child.code for child in ranks] == [2, 2], ranks[0].err
    for child in ranks:
        assert f"process 1 differs from process 0: {named}" in child.err
    assert not (tmp_path / "run").exists()


def test_processes_that_chose_different_kernels_are_refused(tiny_dataset, tmp_path):
    """Their bits would differ, and with a batch that depends on the kernel even their tokens."""
    arguments = [
        *command(tiny_dataset, tmp_path / "run"), "--gradient_accumulation_steps", "1",
        "--tokens_per_step", "128",
    ]  # fmt: skip
    ranks = call_ranks(2, *arguments, cwd=tmp_path, setup=poison.plans_otherwise, args=(1,))
    assert [child.code for child in ranks] == [2, 2]
    assert "error[RANKS-DISAGREE]" in ranks[0].err
    assert not (tmp_path / "run").exists()
