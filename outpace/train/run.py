"""A training run from flags to exit code: plan, lock, assemble, resume, train, tell."""

import contextlib
import dataclasses
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import outpace
from outpace.checkpoint import store
from outpace.checkpoint.state import differences, load_optimizer, load_weights
from outpace.config.load import SetBy, to_toml
from outpace.config.schema import RunConfig
from outpace.core.crash import explain
from outpace.core.errors import (
    DONE,
    STOPPED_RESUMABLE,
    CheckpointError,
    DataError,
    OutpaceError,
    UsageError,
)
from outpace.core.files import replace_file, replace_json
from outpace.core.log import note, say, warn
from outpace.core.runfolder import RUN_FORMAT, RunFolder
from outpace.core.units import count, duration, gib
from outpace.data.shards import Dataset
from outpace.runtime import distributed
from outpace.runtime.hardware import Machine, detect
from outpace.train.assemble import Session, assemble, capabilities, choose_device
from outpace.train.corpus import open_named
from outpace.train.loop import Progress, train
from outpace.train.plan import DatasetFacts, Plan, identity, run_name
from outpace.train.planner import make_plan
from outpace.train.stop import StopRequest

ENVIRONMENT_MATTERS = (
    "torch", "cuda", "cudnn", "device", "threads", "world_size", "micro_batch_size", "compile",
    "attention_kernel", "deterministic",
)  # fmt: skip
"""Equal bits are promised where these are equal; elsewhere the same data in the same order."""


def plan_run(
    config: RunConfig, set_by: SetBy, ranks: distributed.Ranks, *, make_data: bool = False
) -> tuple[Plan, Machine, Dataset, torch.device]:
    """Everything up to the plan. Nothing is written, but for the default dataset with
    `make_data`."""
    device = choose_device(config.compute.device, ranks.local_rank)
    machine = _share(detect(device.type))
    dataset = open_named(config.data.dataset, make=make_data, is_main=ranks.local_rank == 0)
    facts = DatasetFacts(
        dataset.name, dataset.vocab_size, dataset.tokens("train"), dataset.tokens("val")
    )
    plan = make_plan(config, set_by, machine, facts, ranks.world_size, capabilities(device))
    return plan, machine, dataset, device


def _share(machine: Machine) -> Machine:
    """Processes of one host that train on its CPU share its memory."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if machine.device != "cpu" or here == 1:
        return machine
    return dataclasses.replace(
        machine,
        memory_bytes=machine.memory_bytes // here,
        available_bytes=machine.available_bytes // here,
    )


def run(config: RunConfig, set_by: SetBy, argv: list[str]) -> tuple[int, Path]:
    """Train. Returns the exit code (0 or 75) and the run folder; raises OutpaceError else."""
    stop = StopRequest(None if config.schedule.max_hours == "auto" else config.schedule.max_hours)
    ranks = distributed.from_environment()
    plan, machine, dataset, device = plan_run(config, set_by, ranks, make_data=True)
    same = identity(config, plan, dataset.fingerprint)
    root = config.run.run_dir
    if root == "auto":
        root = str(Path("runs") / run_name(plan, dataset.name, same))
    folder = RunFolder(Path(root))
    environment = describe_environment(plan, machine)
    lock = None
    if ranks.is_main:
        _check_startable(config, plan, folder, dataset, same)
        print_plan(plan, machine, dataset, folder)
    group = None
    try:
        group = distributed.Group(ranks, device)
        # Assembling refuses a model, optimiser or dataset that cannot serve; only then write.
        session = assemble(
            config,
            plan,
            folder=folder,
            group=group,
            dataset=dataset,
            device=device,
            stop=stop,
            identity=same,
        )
        if ranks.is_main:
            folder.create()
            lock = folder.lock()
            store.sweep(folder.checkpoints)
            _write_start(session, set_by, machine, environment, argv)
        stop.listen()  # from here on a signal saves; before, there is nothing to save
        progress = _resume(session, environment)
        _check_agreement(group, progress.step)
        finished = train(session, progress, machine, environment)
        code = DONE if finished else STOPPED_RESUMABLE
        if ranks.is_main:
            _write_end(session, progress, finished)
        group.largest(0)  # torchrun ends the others when one leaves with 75
        return code, folder.root
    except Exception as error:
        known = distributed.lost_peer(error, ranks) or explain(error, folder.root)
        if lock is not None:  # the run folder is ours to write in
            with contextlib.suppress(OSError, OutpaceError):  # its disk may be what failed
                folder.event("failed", error=str(known))
                folder.write_status(
                    "failed", code=known.exit_code, reason=str(known), **_last_checkpoint(folder)
                )
        if known is error:
            raise
        raise known from error
    finally:
        if group is not None:
            group.close()
        if lock is not None:
            lock.release()


def _check_startable(
    config: RunConfig, plan: Plan, folder: RunFolder, dataset: Dataset, same: dict[str, Any]
) -> None:
    """Refuse, before anything is written, a folder in use, a used one when a new run was asked for,
    and the continuation of another run."""
    if (folder.root / ".lock").exists():
        folder.lock().release()  # taken for good only after assembling, which may take long
    if config.run.resume == "never" and folder.root.is_dir() and any(folder.root.iterdir()):
        raise UsageError(
            "RUN-DIR-USED",
            f"{folder.root} holds a run already",
            do="choose another --run_dir, or leave --resume at auto to continue it",
        )
    checkpoint = _to_resume(config.run.resume, folder)
    if checkpoint is None:
        return
    newer = [p for p in store.paths(folder.checkpoints) if p.name > checkpoint.path.name]
    if newer and config.run.resume != "auto":
        raise UsageError(
            "RESUME-OLDER",
            f"{folder.root} has newer checkpoints than {checkpoint.path.name} ({newer[-1].name})",
            do="continue with --resume auto, or from the older one in another --run_dir",
        )
    if checkpoint.step > plan.max_steps:
        raise UsageError(
            "SHORTER",
            f"the run in {folder.root} stands at step {checkpoint.step:,}, beyond the "
            f"{plan.max_steps:,} steps asked for",
            kept="the run",
            do="give at least as many steps, or another --run_dir",
        )
    if "identity" not in checkpoint.state:
        raise CheckpointError(
            "WEIGHTS-ONLY", f"{checkpoint.path} holds weights only", do="use it with --init_from"
        )
    changed = differences(checkpoint.state["identity"], same)
    if not changed:
        return
    if any(c.startswith("dataset:") for c in changed):
        raise DataError(
            "DATA-CHANGED",
            f"the run in {folder.root} was trained on another dataset than {dataset.folder}",
            kept=f"the run, at step {checkpoint.step}",
            do="give the dataset it was started with, or another --run_dir",
        )
    raise CheckpointError(
        "CONFIG-CHANGED",
        f"the run in {folder.root} has other settings: {', '.join(changed)}",
        kept=f"the run, at step {checkpoint.step}",
        do="give the settings it was started with, or another --run_dir",
    )


def _to_resume(
    resume: str, folder: RunFolder, *, set_aside: bool = False
) -> store.Checkpoint | None:
    if resume == "never":
        return None
    if resume == "auto":
        return store.latest(folder.checkpoints, set_aside=set_aside)
    path = Path(resume)
    if not path.is_dir():
        raise CheckpointError("NO-CKPT", f"there is no checkpoint {resume}", do="check --resume")
    return store.load(path)


def _resume(s: Session, environment: dict[str, Any]) -> Progress:
    """Load the newest good checkpoint into the session; every process reads the same files."""
    checkpoint = _to_resume(s.config.run.resume, s.folder, set_aside=s.group.ranks.is_main)
    if checkpoint is None:
        if s.group.ranks.is_main:
            s.folder.forget_after(0)  # of a run that died before its first checkpoint
        return Progress()
    cpu = torch.device("cpu")
    load_weights(s.model, checkpoint.model(cpu))
    load_optimizer(s.model, s.trainable.optimizer, checkpoint.optimizer(cpu))
    s.trainable.scaler.load_state_dict(checkpoint.state["scaler"])
    if s.group.ranks.is_main:
        s.folder.forget_after(checkpoint.step)
        say(f"resuming from {checkpoint.path} at step {checkpoint.step:,}")
        then = checkpoint.state["environment"]
        changed = [
            c for c in differences(then, environment) if c.split(":")[0] in ENVIRONMENT_MATTERS
        ]
        if changed:
            warn(
                "[NOT-BIT-EXACT] same data in the same order, but not the same bits: "
                + ", ".join(changed)
            )
        if (before := checkpoint.state["max_steps"]) != s.plan.max_steps:
            warn(
                f"the run's length changes from {before:,} to {s.plan.max_steps:,} steps, and its "
                "schedule with it"
            )
        s.folder.event("resumed", step=checkpoint.step, path=checkpoint.path.name, changed=changed)
    return Progress(checkpoint.step, checkpoint.state["elapsed_s"])


def _check_agreement(group: distributed.Group, step: int) -> None:
    """All processes must stand at the same step: they read the run folder each for themselves."""
    if group.largest(step) != -group.largest(-step):
        raise CheckpointError(
            "RANKS-DISAGREE",
            "not every process sees the same checkpoints in the run folder",
            do="put --run_dir on a file system that all hosts share",
        )


def _write_start(
    s: Session, set_by: SetBy, machine: Machine, environment: dict[str, Any], argv: list[str]
) -> None:
    folder, dataset = s.folder, s.dataset
    replace_file(folder.config, to_toml(s.config, set_by))
    replace_json(
        folder.plan,
        {
            "format": RUN_FORMAT,
            "command": argv,
            **s.plan.record(),
            "machine": vars(machine),
            "versions": versions(),
            "environment": environment,
            "dataset": {
                "name": dataset.name,
                "path": str(dataset.folder),
                "fingerprint": dataset.fingerprint,
                "train_tokens": dataset.tokens("train"),
                "val_tokens": dataset.tokens("val"),
                "documents": sum(sh["documents"] for sh in dataset.manifest["shards"]),
                "unigram_entropy": dataset.unigram_entropy,
                "tokenizer": dataset.tokenizer,
            },
        },
    )
    folder.write_status("running", **_last_checkpoint(folder))
    folder.event("started", command=argv)


def _write_end(s: Session, progress: Progress, finished: bool) -> None:
    last = _last_checkpoint(s.folder)
    where = f"{progress.step:,} of {s.plan.max_steps:,} steps"
    if finished:
        digest = store.weights_sha256(dict(s.model.named_parameters()))
        s.folder.event("finished", step=progress.step, weights_sha256=digest)
        s.folder.write_status(
            "finished", code=DONE, last_step=progress.step, weights_sha256=digest, **last
        )
        say(
            f"finished {where} in {duration(progress.elapsed_s)} of training; weights {digest[:16]}"
        )
    else:
        reason = s.stop.reason or "another process was asked to stop"
        s.folder.event("stopped", step=progress.step, reason=reason)
        s.folder.write_status(
            "stopped", code=STOPPED_RESUMABLE, reason=reason, last_step=progress.step, **last
        )
        say(f"stopped at {where} ({reason}); the same command continues")


def _last_checkpoint(folder: RunFolder) -> dict[str, Any]:
    names = [p.name for p in store.paths(folder.checkpoints)]
    return {"last_verified_checkpoint": names[-1] if names else None, "resumable": bool(names)}


def describe_environment(plan: Plan, machine: Machine) -> dict[str, Any]:
    """What equal bits depend on besides the run's settings."""
    return {
        "torch": torch.__version__,
        "device": machine.device_name,
        "threads": torch.get_num_threads(),
        "world_size": plan.world_size,
        "micro_batch_size": plan.micro_batch_size,
        "compile": plan.compile,
        "attention_kernel": plan.attention_kernel,
        "deterministic": plan.deterministic,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
    }


def versions() -> dict[str, str]:
    """Versions of what computes, and the git commit when run from a checkout."""
    found = {"outpace": outpace.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "tiktoken", "safetensors"):
        found[package] = metadata.version(package)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    folder = Path(outpace.__file__).parent
    try:
        git = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        answer = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)
        if answer.returncode == 0:
            found["git_commit"] = answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return found


def print_plan(plan: Plan, machine: Machine, dataset: Dataset, folder: RunFolder | None) -> None:
    """The plan as people read it: what, on what, and why."""
    say(
        f"GPT-2 {plan.model_size}: {plan.parameters:,} parameters, {plan.n_layer} layers, "
        f"{plan.n_head} heads, {plan.n_embd} channels, context {plan.context}"
    )
    peak = f", peak {plan_peak(machine)}" if machine.peak_flops else ""
    say(f"on {machine.device_name} ({machine.device}, {gib(machine.memory_bytes)}{peak})")
    say(
        f"data {dataset.folder}: {dataset.tokens('train'):,} training and "
        f"{dataset.tokens('val'):,} validation tokens, unigram entropy "
        f"{dataset.unigram_entropy:.4f} nats a token"
    )
    say(f"batch {plan.arithmetic()}")
    say(
        f"length {plan.max_steps:,} steps, {count(plan.max_tokens)} tokens, "
        f"{plan.epochs:.2f} epochs; {plan.schedule} from {plan.lr:g} after {plan.warmup_steps} "
        "steps"
    )
    say(
        f"precision {plan.mixed_precision}; attention {plan.attention_backend}, kernel "
        f"{plan.attention_kernel}; compile {'on' if plan.compile else 'off'}; about "
        f"{gib(plan.predicted_memory_bytes)} of memory"
    )
    for choice in plan.choices:
        note(f"  {choice.setting} = {choice.value}: {choice.reason}")
    for warning in plan.warnings:
        warn(warning)
    if folder is not None:
        say(f"run folder {folder.root}")
    sys.stdout.flush()


def plan_peak(machine: Machine) -> str:
    return f"{(machine.peak_flops or 0) / 1e12:.0f} TFLOP/s by {machine.peak_source}"
