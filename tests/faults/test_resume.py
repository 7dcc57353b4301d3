"""A run that is interrupted goes on to the same bits, with the same data in the same order, and
says so where it cannot promise that; another run's settings are refused."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import poison
import pytest
from conftest import final_hash, write_corpus
from harness import (
    Fault,
    assert_steps_stand_once,
    assert_tidy,
    call,
    events,
    logged,
    rollbacks,
    start,
)
from peers import call_ranks
from trials_resume import (
    KILL_SEED,
    STEPS,
    chain_of_kills,
    command,
    hashes,
    newest,
    resumed_at,
    rows_by_step,
    train,
)

from outpace.checkpoint import store
from outpace.cli.main import main
from outpace.core.files import read_json_lines
from outpace.core.runfolder import RunFolder
from outpace.data.order import Order, OrderSpec, Source
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shards import open_dataset
from outpace.data.sources.files import FilesSource
from outpace.optim import OPTIMIZERS

FP16 = ("--mixed_precision", "fp16")


@pytest.fixture(scope="module")
def straight(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps that nothing happened to, a checkpoint of each."""
    folder = tmp_path_factory.mktemp("straight")
    return train(tiny_dataset, folder / "run")


def records(run: Path, file: str, *keys: str) -> list[tuple[object, ...]]:
    return [tuple(r.get(key) for key in keys) for r in read_json_lines(run / file)]


def content(folder: Path) -> dict[str, tuple[str, int]]:
    """Path -> SHA-256 and time of change of every file, but the lock and what children said."""
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest(),
            p.stat().st_mtime_ns,
        )
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock" and not p.name.startswith(".child-")
    }


# R1, R2, R3: where it is interrupted.


@pytest.mark.parametrize("step", [0, 1, 14, 29, 30])
def test_r1_every_later_checkpoint_is_the_same_bits(straight, tiny_dataset, tmp_path, step):
    assert resumed_at(tiny_dataset, straight, step, tmp_path) == []
    run = tmp_path / f"from-{step}"
    assert final_hash(run) == final_hash(straight)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS.names() if name != "adamw"])
def test_r1_of_every_optimizer(tiny_dataset, tmp_path, optimizer):
    extra = ("--optimizer", optimizer)
    reference = train(tiny_dataset, tmp_path / "straight", *extra)
    assert resumed_at(tiny_dataset, reference, 14, tmp_path, *extra) == []
    assert main(["verify", str(reference), "--deep"]) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "extra", [(), FP16, ("--mixed_precision", "bf16")], ids=["fp32", "fp16", "bf16"]
)
def test_r1_from_every_step(tiny_dataset, tmp_path, extra):
    reference = train(tiny_dataset, tmp_path / "straight", *extra)
    for step in range(STEPS + 1):
        assert resumed_at(tiny_dataset, reference, step, tmp_path, *extra) == [], step
        shutil.rmtree(tmp_path / f"from-{step}")


@pytest.mark.exhaustive
def test_r1_a_compiled_run_on_two_threads(tiny_dataset, tmp_path):
    """Not so without deterministic kernels: see the lab log."""
    extra = ("--compile", "on", "--mixed_precision", "bf16")
    two = {"setup": poison.threads, "args": (2,)}
    call(*command(tiny_dataset, tmp_path / "a", *extra), cwd=tmp_path, timeout=600, **two)
    child = start(*command(tiny_dataset, tmp_path / "b", *extra), cwd=tmp_path, **two)
    child.until(lambda: newest(tmp_path / "b") >= 11, 600)
    child.kill()
    call(*command(tiny_dataset, tmp_path / "b", *extra), cwd=tmp_path, timeout=600, **two)
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")


def test_r1_three_processes(tiny_dataset, tmp_path):
    """A sum of three depends on how it is grouped, and so on what was summed before."""
    extra = ("--gradient_accumulation_steps", "1", "--strict_resume")
    reference, run = tmp_path / "straight", tmp_path / "run"

    def train(run: Path, *faults: tuple[object, ...]) -> int:
        arguments = command(tiny_dataset, run, *extra, steps=7)
        ranks = call_ranks(3, *arguments, cwd=tmp_path, setup=poison.all_of, args=faults)
        assert len({rank.code for rank in ranks}) == 1, ranks[0].err
        return ranks[0].code

    assert train(reference) == 0
    assert train(run, (poison.signalled, 4, signal.SIGTERM)) == 75 and newest(run) < 7
    assert train(run) == 0
    assert hashes(run) == hashes(reference)
    prove = ("prove-resume", str(run), "--at", "2")
    proven = call_ranks(3, *prove, cwd=tmp_path)
    assert [rank.code for rank in proven] == [0, 0, 0], [rank.err for rank in proven]
    assert "equal to the last bit" in proven[0].err and not proven[1].out + proven[1].err
    alone = call(*prove, cwd=tmp_path)
    assert alone.code == 2 and "start it like the run, with 3 processes" in alone.err, alone.err


@pytest.mark.parametrize(
    "kills", [6, pytest.param(20, marks=pytest.mark.exhaustive)], ids=lambda n: f"{n}-kills"
)
def test_r2_a_chain_of_kills_ends_in_the_same_bits(straight, tiny_dataset, tmp_path, kills):
    run = tmp_path / "run"
    assert chain_of_kills(tiny_dataset, run, kills, KILL_SEED) >= kills // 2
    assert hashes(run) == hashes(straight)
    assert final_hash(run) == final_hash(straight)
    assert_steps_stand_once(run)
    assert_tidy(run)
    for file in ("metrics.jsonl", "evals.jsonl"):
        assert records(run, file, "step", "loss") == records(straight, file, "step", "loss")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of shards of some 5 steps each, 20 to 30 steps to the epoch."""
    folder = tmp_path_factory.mktemp("small")
    source = FilesSource([str(write_corpus(folder / "text", 6))])
    options = PrepareOptions(tokenizer="bytes", val_fraction=0.1, shard_tokens=700)
    prepare(source, folder / "data", options)
    return folder / "data"


@pytest.mark.exhaustive
def test_r3_across_shards_and_epochs(small, tmp_path):
    """More than two epochs, interrupted at the ends of each and in between: the same bits; and each
    window of an epoch is read once, as the tokens that the model was given show."""
    dataset = open_dataset(small)
    order = Order([Source(dataset.tokens("train"))], OrderSpec(32, 1337))
    blocks = int(order.blocks[0])
    per_epoch, steps = blocks / 4, int(blocks / 4 * 2.3)
    assert len(list(small.glob("*.bin"))) > 3 and steps > 2 * per_epoch

    reference, rows = tmp_path / "straight", tmp_path / "rows"
    wanted = tmp_path / "wanted"
    child = call(
        *command(small, reference, steps=steps),
        cwd=tmp_path,
        setup=poison.record_rows,
        args=(str(wanted),),
    )
    assert child.code == 0, child.err
    run = tmp_path / "run"
    edges = [int(per_epoch), int(per_epoch) + 1, int(2 * per_epoch), int(2 * per_epoch) + 1]
    for edge in edges:
        child = start(
            *command(small, run, steps=steps),
            cwd=tmp_path,
            setup=poison.all_of,
            args=((poison.record_rows, str(rows)), (poison.slow_steps, 0.02)),
        )
        child.until(lambda edge=edge: newest(run) >= edge)
        child.kill()
    train(small, run, steps=steps)
    assert hashes(run) == hashes(reference)

    read = rows_by_step(wanted)
    interrupted = rows_by_step(rows)
    assert interrupted == {step: read[step] for step in interrupted}, "the same rows again"
    stream = dataset.stream("train")
    given = [row[1:] for step in sorted(read) for row in read[step]]
    for epoch in (0, 1):
        first = epoch * blocks
        windows = []
        for place in range(blocks):
            window = stream_window(stream, order.phase(0, epoch) + 32 * place)
            windows.append(tuple(window))
        assert sorted(map(tuple, given[first : first + blocks])) == sorted(windows)


@pytest.mark.parametrize(
    "flags",
    [("--order_chunk", "3", "--no_phase"), ("--bos_aligned", "--document_mask")],
    ids=lambda flags: flags[0].lstrip("-"),
)
def test_r3_several_datasets_in_any_order_of_samples(small, tiny_dataset, tmp_path, flags):
    """Through several epochs of the smaller one, interrupted in the middle: the same bits."""
    mixture = f"{tiny_dataset}:0.6,{small}:0.4"
    straight = train(mixture, tmp_path / "straight", *flags)
    assert resumed_at(mixture, straight, 14, tmp_path, *flags) == []
    record = json.loads((straight / "plan.json").read_text())["dataset"]
    assert record["path"] == mixture
    evaluated = list(read_json_lines(straight / "evals.jsonl"))[-1]
    a, b = evaluated["by_dataset"].values()
    assert evaluated["loss"] == pytest.approx(0.6 * a + 0.4 * b)


def stream_window(stream, at: int) -> list[int]:
    out = np.empty(33, np.uint16)
    stream.read(at, out)
    return out.tolist()


# R4: what is measured on the way.


def test_r4_evaluating_and_sampling_do_not_change_the_bits(straight, tiny_dataset, tmp_path):
    extra = ("--eval_every_steps", "1", "--sample_tokens", "8", "--sample_every_steps", "4")
    run = train(tiny_dataset, tmp_path / "run", *extra)
    assert hashes(run) == hashes(straight)
    assert len(list(read_json_lines(run / "samples.jsonl"))) == 7 + 2
    assert len(list(read_json_lines(run / "evals.jsonl"))) == STEPS


# R5 to R9: what has changed.


@pytest.fixture
def stopped(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that stands at step 10."""
    name = store.name_of(10, 0)
    shutil.copytree(straight / "checkpoints" / name, tmp_path / "run" / "checkpoints" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


CHANGED = {
    "n_layer": "3", "n_embd": "64", "context": "16", "dropout": "0.2", "lr": "2e-3",
    "seed": "7", "mixed_precision": "bf16", "weight_decay": "0.2", "beta2": "0.99",
    "grad_clip": "0.5", "schedule": "constant", "warmup_steps": "3", "min_lr_ratio": "0.2",
    "gradient_accumulation_steps": "4", "micro_batch_size": "4", "eps": "1e-6",
}  # fmt: skip


@pytest.mark.parametrize("setting", CHANGED)
def test_r5_another_setting_is_refused_with_what_differs(stopped, tiny_dataset, capsys, setting):
    before = content(stopped)
    code = main([*command(tiny_dataset, stopped), f"--{setting}", CHANGED[setting]])
    err = capsys.readouterr().err
    assert code == 4 and "error[CONFIG-CHANGED]" in err and "kept: the run, at step 10" in err, err
    named = "tokens_per_step" if setting in ("gradient_accumulation_steps", "micro_batch_size") \
        else setting  # fmt: skip
    assert f"{named}: " in err and " -> " in err
    assert content(stopped) == before


@pytest.mark.parametrize(
    "flag", ["--order_chunk=2", "--no_phase", "--bos_aligned", "--document_mask"]
)
def test_r5_another_order_of_samples_is_refused(stopped, tiny_dataset, capsys, flag):
    before = content(stopped)
    assert main([*command(tiny_dataset, stopped), flag]) == 4
    err = capsys.readouterr().err
    name = flag.lstrip("-").removeprefix("no_").split("=")[0]
    assert "error[CONFIG-CHANGED]" in err and f"{name}: " in err and "None" not in err
    assert content(stopped) == before


def test_r5_other_shares_of_the_same_datasets_are_another_dataset(
    small, tiny_dataset, tmp_path, capsys
):
    run = train(f"{tiny_dataset}:0.6,{small}:0.4", tmp_path / "run", steps=2)
    before = content(run)
    for other in (f"{tiny_dataset}:0.5,{small}:0.5", f"{small}:0.4,{tiny_dataset}:0.6"):
        assert main(command(other, run, steps=2)) == 3
        assert "error[DATA-CHANGED]" in capsys.readouterr().err
        assert content(run) == before
    assert main(command(f"{tiny_dataset}:6,{small}:4", run, steps=2)) == 0


def test_r5_what_is_not_the_run_itself_may_change_and_is_recorded(
    straight, stopped, tiny_dataset, tmp_path
):
    """Evaluation, saving and safety may; the length may, and says that the schedule follows it."""
    extra = ("--eval_every_steps", "3", "--save_every_steps", "4", "--spike_threshold", "0")
    done = call(*command(tiny_dataset, stopped, *extra), cwd=tmp_path)
    assert done.code == 0, done.err
    assert final_hash(stopped) == final_hash(straight)
    more = call(*command(tiny_dataset, stopped, steps=STEPS + 3), cwd=tmp_path)
    assert more.code == 0 and "length changes from 30 to 33 steps" in more.err
    changed = events(stopped, "started")[-1]["changed_settings"]
    assert "max_steps: 30 -> 33" in changed


def test_r5_fewer_steps_than_done_are_refused(stopped, tiny_dataset, capsys):
    before = content(stopped)
    assert main(command(tiny_dataset, stopped, steps=9)) == 2
    assert "error[SHORTER]" in capsys.readouterr().err
    assert content(stopped) == before


def test_r6_other_numbers_of_processes_and_micro_batches_read_the_same_tokens(
    straight, tiny_dataset, tmp_path
):
    """1 -> 2 -> 1 processes, then another micro-batch: each row of each step as in the straight
    run, none left out or read twice; losses agree; said to be not the same bits."""
    run, wanted = tmp_path / "run", tmp_path / "wanted"
    flags = ["--schedule", "constant", "--tokens_per_step", "128", "--dropout", "0"]
    common = [*command(tiny_dataset, tmp_path / "straight", *flags), "--max_steps", "12"]
    call(*common, cwd=tmp_path, setup=poison.record_rows, args=(str(wanted),))

    given: list[Path] = []

    def life(steps: int, processes: int, rows: int) -> str:
        batch = ["--micro_batch_size", str(rows), "--gradient_accumulation_steps",
                 str(4 // processes // rows)]  # fmt: skip
        arguments = [
            *command(tiny_dataset, run, *flags, *batch), "--max_steps", str(steps),
        ]  # fmt: skip
        if processes == 1:
            given.append(tmp_path / f"rows-{steps}")
            options = {"setup": poison.record_rows, "args": (str(given[-1]),)}
            children = [call(*arguments, cwd=tmp_path, **options)]
        else:
            files = [tmp_path / f"rows-{steps}-{rank}" for rank in range(processes)]
            given.extend(files)
            children = call_ranks(
                processes,
                *arguments,
                cwd=tmp_path,
                setup=poison.record_rows_by_rank,
                args=(str(tmp_path / f"rows-{steps}"),),
            )
        assert [c.code for c in children] == [0] * processes, children[0].err + children[-1].err
        return children[0].err

    assert "NOT-BIT-EXACT" not in life(3, 1, 2)
    assert "world_size: 1 -> 2" in life(6, 2, 2)
    assert "world_size: 2 -> 1" in life(9, 1, 2)
    assert "micro_batch_size: 2 -> 4" in life(12, 1, 4)

    together = tmp_path / "together"
    together.write_text("".join(path.read_text() for path in given))
    assert rows_by_step(together) == rows_by_step(wanted)
    assert sum(len(json.loads(line)[1]) for line in together.read_text().splitlines()) == 12 * 4
    losses = [r["loss"] for r in read_json_lines(run / "metrics.jsonl")]
    expected = [r["loss"] for r in read_json_lines(tmp_path / "straight" / "metrics.jsonl")]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert_steps_stand_once(run)


@pytest.mark.parametrize(
    ("change", "argument", "said"),
    [(poison.threads, 2, "threads: 1 -> 2"), (poison.another_torch, "2.0.1", "-> 2.0.1")],
    ids=["threads", "torch"],
)
def test_r7_another_machine_is_told_and_with_strict_resume_refused(
    stopped, tiny_dataset, tmp_path, change, argument, said
):
    options = {"cwd": tmp_path, "setup": change, "args": (argument,)}
    before = content(stopped)
    refused = call(*command(tiny_dataset, stopped, "--strict_resume"), **options)
    assert refused.code == 4 and "error[NOT-BIT-EXACT]" in refused.err and said in refused.err
    assert content(stopped) == before
    done = call(*command(tiny_dataset, stopped), **options)
    assert done.code == 0 and "warning: [NOT-BIT-EXACT]" in done.err and said in done.err
    assert said in str(events(stopped, "resumed")[-1]["changed"])
    same = call(*command(tiny_dataset, stopped, "--strict_resume", steps=31), **options)
    assert same.code == 0 and "NOT-BIT-EXACT" not in same.err


def test_r7_another_attention_is_told_even_if_both_store_the_matrix(
    stopped, tiny_dataset, tmp_path
):
    extra = ("--attention_backend", "eager", "--strict_resume")
    refused = call(*command(tiny_dataset, stopped, *extra), cwd=tmp_path)
    assert refused.code == 4 and "error[NOT-BIT-EXACT]" in refused.err
    assert "materialised -> materialised under autocast" in refused.err


# R10 to R15: ends, policy, clocks, records.


def test_r10_a_finished_run_is_left_alone(tiny_dataset, tmp_path):
    run = train(tiny_dataset, tmp_path / "run", "--save_every_steps", "0", steps=6)

    def that_counts() -> dict[str, tuple[str, int]]:
        return {k: v for k, v in content(run).items() if k not in ("report.html", "events.jsonl")}

    before = that_counts()
    for more in ((), ("--micro_batch_size", "1", "--gradient_accumulation_steps", "4")):
        argv = command(tiny_dataset, run, "--save_every_steps", "0", *more, steps=6)
        again = call(*argv, cwd=tmp_path)
        assert again.code == 0 and "finished 6 of 6" in again.out, again.err
        assert that_counts() == before and len(before) >= 6


def test_r10_a_finished_run_is_extended_from_its_whole_state(tiny_dataset, tmp_path):
    """With a schedule that does not depend on the length, 6 steps and then 9 are 9 steps."""
    extra = ("--schedule", "constant", "--warmup_steps", "2", "--save_every_steps", "0")
    train(tiny_dataset, tmp_path / "run", *extra, steps=6)
    train(tiny_dataset, tmp_path / "run", *extra, steps=9)
    train(tiny_dataset, tmp_path / "straight", *extra, steps=9)
    assert hashes(tmp_path / "run")[9] == hashes(tmp_path / "straight")[9]
    assert_steps_stand_once(tmp_path / "run")


def test_r11_a_kill_between_micro_steps_redoes_the_step(straight, tiny_dataset, tmp_path):
    """Killed in the second micro-step of two, in the 10th step."""
    run = tmp_path / "run"
    child = call(
        *command(tiny_dataset, run),
        cwd=tmp_path,
        setup=poison.at_forward,
        args=(20, signal.SIGKILL),
    )
    assert child.code == -signal.SIGKILL and newest(run) <= 9
    train(tiny_dataset, run)
    assert hashes(run) == hashes(straight)
    assert_steps_stand_once(run)


def test_r12_the_loss_scale_is_in_the_checkpoint(tiny_dataset, tmp_path):
    extra = ("--save_every_steps", "3")
    train(tiny_dataset, tmp_path / "a", *FP16, *extra, steps=10)
    child = start(
        *command(tiny_dataset, tmp_path / "b", *FP16, *extra, steps=10),
        cwd=tmp_path,
        setup=poison.slow_steps,
        args=(0.05,),
    )
    child.until(lambda: newest(tmp_path / "b") >= 3)
    child.kill()
    train(tiny_dataset, tmp_path / "b", *FP16, *extra, steps=10)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    keys = ("step", "loss_scale", "skipped")
    scales = records(tmp_path / "a", "metrics.jsonl", *keys)
    assert records(tmp_path / "b", "metrics.jsonl", *keys) == scales and scales[0][1] > 1


@pytest.mark.parametrize("bad", ["spike", "nan"])
def test_r12_a_resume_decides_as_the_run_would_have(tiny_dataset, tmp_path, bad):
    """Interrupted at the step before the bad one, at it, and right behind it: the same steps are
    skipped, the same incidents kept with the same batches, to the same bits."""
    fault = {"spike": (poison.loss, (45,), 50.0), "nan": (poison.gradient, (45,))}[bad]
    extra = ("--skip_spikes", "--spike_threshold", "100", "--eval_every_steps", "0")
    options = {"cwd": tmp_path, "setup": poison.all_of, "args": (fault,)}

    def arguments(run: Path, *more: str) -> list[str]:
        return command(tiny_dataset, run, *extra, *more, steps=50)

    reference = tmp_path / "straight"
    assert call(*arguments(reference), **options).code == 0
    skipped = [r["step"] for r in read_json_lines(reference / "metrics.jsonl") if r["skipped"]]
    assert skipped == [45]
    kept = (reference / "incidents/step-00000045/process-0.safetensors").read_bytes()
    for step in (44, 45, 46):
        run = tmp_path / f"from-{step}"
        name = store.name_of(step, 0)
        shutil.copytree(reference / "checkpoints" / name, run / "checkpoints" / name)
        if step == 46:
            shutil.copytree(reference / "incidents", run / "incidents")
        assert call(*arguments(run), **options).code == 0
        assert hashes(run)[50] == hashes(reference)[50], step
        state = json.loads((run / "checkpoints/step-00000050/state.json").read_text())
        whole = json.loads((reference / "checkpoints/step-00000050/state.json").read_text())
        assert state["policy"] == whole["policy"], step
        incident = run / "incidents/step-00000045"
        assert (incident / "process-0.safetensors").read_bytes() == kept, step
        assert json.loads((incident / "incident.json").read_text())["data_step"] == 44


def test_r12_the_best_checkpoint_and_the_time_spent_outlive_a_resume(tiny_dataset, tmp_path):
    """Elapsed time goes on from where it was; the best by validation loss is still kept."""
    run = tmp_path / "run"
    extra = ["--keep_checkpoints", "2", "--eval_every_steps", "1"]
    worse = ["--lr", "0.5", "--warmup_steps", "20", "--schedule", "constant"]
    arguments = command(tiny_dataset, run, *extra, *worse, steps=24)
    child = start(*arguments, cwd=tmp_path, setup=poison.slow_steps, args=(0.05,))
    child.until(lambda: newest(run) >= 8)
    child.kill()
    before = [r["elapsed_s"] for r in read_json_lines(run / "metrics.jsonl")]
    at = newest(run)
    assert call(*arguments, cwd=tmp_path).code == 0
    after = [r["elapsed_s"] for r in read_json_lines(run / "metrics.jsonl")]
    assert after == sorted(after) and after[at] >= before[at - 1] > 0.05 * (at - 1)
    losses = {r["step"]: r["loss"] for r in read_json_lines(run / "evals.jsonl")}
    best = min((s for s in losses if s < 24), key=lambda s: losses[s])
    assert best in hashes(run) and len(hashes(run)) <= 3


def test_r13_a_clock_that_jumps_changes_nothing(straight, tiny_dataset, tmp_path):
    """A day forward and back at each look: durations are never negative, the limit of time is not
    reached, and neither the order nor the choice of checkpoints follows their dates."""
    run = tmp_path / "run"
    jumping = {"cwd": tmp_path, "setup": poison.jumping_clock}
    arguments = command(tiny_dataset, run, "--max_hours", "1")
    child = start(*arguments, **jumping)
    child.until(lambda: newest(run) >= 10)
    child.kill()
    for i, path in enumerate(store.paths(RunFolder(run).checkpoints)):
        for place in (path, *path.iterdir()):
            os.utime(place, (2e9 - 1e6 * i,) * 2)  # the newest has the oldest date
    at = newest(run)
    done = call(*arguments, **jumping)
    assert done.code == 0 and f"at step {at}" in done.out, done.err
    assert hashes(run) == hashes(straight)
    seconds = [r["elapsed_s"] for r in read_json_lines(run / "metrics.jsonl")]
    assert seconds == sorted(seconds) and seconds[0] >= 0 and seconds[-1] < 300
    rates = [r["tokens_per_second"] for r in read_json_lines(run / "metrics.jsonl")]
    assert all(rate is None or rate > 0 for rate in rates)
    assert all(e["stall_s"] >= 0 and e["seconds"] >= 0 for e in events(run, "checkpoint"))
    assert_steps_stand_once(run)


@pytest.mark.parametrize("file", ["metrics.jsonl", "evals.jsonl", "samples.jsonl"])
def test_r14_records_cut_in_a_write_are_mended(tiny_dataset, tmp_path, file):
    """Killed in the write of a record, half of which reached the disk: each step stands once, in
    whole lines, and the report draws one curve."""
    run = tmp_path / "run"
    often = ["--eval_every_steps", "2", "--sample_tokens", "2", "--sample_every_steps", "2",
             "--save_every_steps", "3"]  # fmt: skip
    arguments = command(tiny_dataset, run, *often, steps=12)
    fault = Fault("write", "kill-after", at=8 if file == "metrics.jsonl" else 4, path=file)
    child = call(*arguments, cwd=tmp_path, faults=[fault])
    assert child.code == -signal.SIGKILL
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole[:-7])  # what a system that died can leave of the last line
    assert call(*arguments, cwd=tmp_path).code == 0
    assert_steps_stand_once(run)
    for name, steps in (("evals.jsonl", range(2, 13, 2)), ("samples.jsonl", range(2, 11, 2))):
        lines = [json.loads(line) for line in (run / name).read_bytes().splitlines()]
        assert [r["step"] for r in lines if r["step"] < 12 or name == "evals.jsonl"] == list(steps)
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0


def test_r15_a_used_folder_is_refused_a_new_run(stopped, tiny_dataset, capsys):
    before = content(stopped)
    assert main([*command(tiny_dataset, stopped), "--resume", "never"]) == 2
    err = capsys.readouterr().err
    assert "error[RUN-DIR-USED]" in err and "--resume at auto" in err
    assert content(stopped) == before


def test_r15_a_checkpoint_that_is_not_there_is_refused(tiny_dataset, tmp_path, capsys):
    arguments = command(tiny_dataset, tmp_path / "run")
    assert main([*arguments, "--resume", str(tmp_path / "nowhere")]) == 4
    assert "error[NO-CKPT]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_r15_auto_continues_says_so_and_starts_anew_where_nothing_was_saved(
    straight, stopped, tiny_dataset, tmp_path
):
    done = call(*command(tiny_dataset, stopped), cwd=tmp_path)
    assert "resuming from" in done.out and "at step 10" in done.out
    fresh = tmp_path / "fresh"
    dies = [Fault("fsync", "kill", path=".tmp-1-")]
    child = call(*command(tiny_dataset, fresh), cwd=tmp_path, faults=dies)
    assert child.code == -signal.SIGKILL and newest(fresh) == 0 and logged(fresh) >= 1
    again = call(*command(tiny_dataset, fresh), cwd=tmp_path)
    assert again.code == 0 and "resuming" not in again.out
    assert hashes(fresh) == hashes(straight)
    assert_steps_stand_once(fresh)


def test_r15_an_older_checkpoint_in_the_same_folder_is_refused(
    straight, tiny_dataset, tmp_path, capsys
):
    """The newer ones would be another future of the same run; elsewhere the older one is fine."""
    older = straight / "checkpoints" / store.name_of(12, 0)
    before = content(straight)
    assert main([*command(tiny_dataset, straight), "--resume", str(older)]) == 2
    assert "error[RESUME-OLDER]" in capsys.readouterr().err
    assert content(straight) == before
    elsewhere = [*command(tiny_dataset, tmp_path / "run"), "--resume", str(older)]
    done = call(*elsewhere, cwd=tmp_path)
    assert done.code == 0 and hashes(tmp_path / "run")[STEPS] == hashes(straight)[STEPS]


@pytest.fixture
def tuned(straight: Path, tiny_dataset: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of a run that another begins with, and the flags of that other."""
    source = tmp_path / "source"
    shutil.copytree(straight, source)
    extra = ("--init_from", str(source), "--save_every_steps", "10", "--max_skipped_steps", "2")
    return source, command(tiny_dataset, tmp_path / "tuned", *extra)


@pytest.mark.parametrize("after", ["gone", "other"])
def test_r16_what_a_run_began_with_is_read_once(tuned, tiny_dataset, tmp_path, after):
    """The model that `--init_from` names is deleted, or trained further, as soon as the run has
    begun: that changes nothing, neither for a resume nor for a rollback to the beginning."""
    source, arguments = tuned
    run, apart = tmp_path / "tuned", tmp_path / "apart"
    bad = (poison.loss_of_data, (4, 5))
    undisturbed = [str(apart) if word == str(run) else word for word in arguments]
    assert call(*undisturbed, cwd=tmp_path, setup=poison.all_of, args=(bad,)).code == 0
    assert rollbacks(apart) == [0]

    stopped = (bad, (poison.signalled, 4, signal.SIGTERM))
    assert call(*arguments, cwd=tmp_path, setup=poison.all_of, args=stopped).code == 75
    assert [store.step_of(p) for p in store.paths(run / "checkpoints")] == [0, 3]
    if after == "gone":
        shutil.rmtree(source)
    else:
        newest = store.paths(source / "checkpoints")[-1]
        shutil.rmtree(newest)  # the one before is another model
    done = call(*arguments, cwd=tmp_path, setup=poison.all_of, args=(bad,))
    assert done.code == 0, done.err
    assert rollbacks(run) == [0] and final_hash(run) == final_hash(apart)


def test_r16_a_run_begun_elsewhere_needs_neither_its_checkpoint_nor_its_model(
    tuned, tiny_dataset, tmp_path
):
    source, arguments = tuned
    assert call(*arguments, cwd=tmp_path).code == 0
    older = tmp_path / "older"
    shutil.copytree(tmp_path / "tuned" / "checkpoints" / store.name_of(10, 0), older)
    at = arguments.index("--run_dir") + 1
    other = [*arguments[:at], str(tmp_path / "other"), *arguments[at + 1 :]]
    begin = [*other, "--resume", str(older)]
    stop = {"setup": poison.signalled, "args": (15, signal.SIGTERM)}
    assert call(*begin, cwd=tmp_path, **stop).code == 75
    shutil.rmtree(source)
    shutil.rmtree(older)
    assert call("plan", *begin[1:], cwd=tmp_path).code == 0
    assert call(*begin, cwd=tmp_path).code == 0
    assert final_hash(tmp_path / "other") == final_hash(tmp_path / "tuned")
    refused = call(*other, "--resume", str(tmp_path / "none"), cwd=tmp_path)
    assert refused.code == 4 and "leave --resume out to continue from" in refused.err


def test_r16_a_run_whose_folder_was_not_named_finds_itself_without_what_it_began_with(
    tuned, tmp_path
):
    source, arguments = tuned
    at = arguments.index("--run_dir")
    arguments = arguments[:at] + arguments[at + 2 :]
    stop = {"setup": poison.signalled, "args": (3, signal.SIGTERM)}
    assert call(*arguments, cwd=tmp_path, **stop).code == 75
    shutil.rmtree(source)
    done = call(*arguments, cwd=tmp_path)
    assert done.code == 0 and "resuming from runs/" in done.out, done.err
    (run,) = (tmp_path / "runs").iterdir()
    for step in ("0", "10"):
        assert call("prove-resume", str(run), "--at", step, cwd=tmp_path).code == 0
    shutil.rmtree(run / "checkpoints" / store.name_of(0, 0))
    refused = call("prove-resume", str(run), "--at", "0", cwd=tmp_path)
    assert refused.code == 2 and "no longer has its initial weights" in refused.err


def test_r15_a_run_begun_from_a_checkpoint_elsewhere_goes_on_by_the_same_command(
    straight, tiny_dataset, tmp_path
):
    older = straight / "checkpoints" / store.name_of(12, 0)
    run = tmp_path / "run"
    same = [*command(tiny_dataset, run), "--resume", str(older)]
    stopped = call(*same, cwd=tmp_path, setup=poison.signalled, args=(20, signal.SIGTERM))
    assert stopped.code == 75, stopped.err
    done = call(*same, cwd=tmp_path)
    assert done.code == 0 and f"resuming from {run}/checkpoints/" in done.out, done.err
    assert final_hash(run) == final_hash(straight)


def test_r15_a_checkpoint_of_another_run_is_not_gone_on_from_in_a_used_folder(
    straight, tiny_dataset, tmp_path
):
    run = train(tiny_dataset, tmp_path / "run", "--seed", "1", steps=5)
    before = content(run)
    older = straight / "checkpoints" / store.name_of(15, 0)
    refused = call(*command(tiny_dataset, run), "--resume", str(older), cwd=tmp_path)
    assert refused.code == 2 and "holds a different run" in refused.err
    assert content(run) == before


def test_r15_a_checkpoint_elsewhere_that_is_ahead_of_the_run_is_gone_on_from(
    straight, tiny_dataset, tmp_path
):
    run = tmp_path / "run"
    at = [str(straight / "checkpoints" / store.name_of(step, 0)) for step in (5, 15)]
    stop = {"setup": poison.signalled, "args": (9, signal.SIGTERM)}
    begin = [*command(tiny_dataset, run), "--resume", at[0]]
    assert call(*begin, cwd=tmp_path, **stop).code == 75
    done = call(*command(tiny_dataset, run), "--resume", at[1], cwd=tmp_path)
    assert done.code == 0 and f"resuming from {at[1]} at step 15" in done.out, done.err
    assert final_hash(run) == final_hash(straight)


def test_r12_a_run_begun_from_a_checkpoint_elsewhere_rolls_back_to_it(
    straight, tiny_dataset, tmp_path
):
    """Before it has saved anything else, and when that checkpoint is gone."""
    older, run = tmp_path / "old" / store.name_of(12, 0), tmp_path / "run"
    shutil.copytree(straight / "checkpoints" / older.name, older)
    extra = ("--save_every_steps", "0", "--max_skipped_steps", "2", "--resume", str(older))
    bad = (poison.loss_of_data, (16, 17))
    arguments = command(tiny_dataset, run, *extra)
    stop = (bad, (poison.signalled, 15, signal.SIGTERM))
    assert call(*arguments, cwd=tmp_path, setup=poison.all_of, args=stop).code == 75
    shutil.rmtree(older.parent)
    done = call(*arguments, cwd=tmp_path, setup=poison.all_of, args=(bad,))
    assert done.code == 0, done.err
    assert [(e["back_to"], e["path"]) for e in events(run, "rollback")] == [(12, older.name)]
