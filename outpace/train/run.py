"""A training run from flags to exit code: plan, lock, assemble, resume, train, report."""

import contextlib
import dataclasses
import shutil
import tomllib
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from outpace.checkpoint import store
from outpace.config.load import SetBy, to_toml
from outpace.config.schema import RunConfig, flat
from outpace.core.crash import explain
from outpace.core.errors import (
    DONE,
    STOPPED_RESUMABLE,
    DataError,
    OutpaceError,
    RunInUse,
    StorageError,
    UsageError,
)
from outpace.core.files import existing_folder, replace_file, replace_json, sha256_file
from outpace.core.log import note, say
from outpace.core.runfolder import RUN_FORMAT, RUNS, RunFolder
from outpace.core.runstate import read_state
from outpace.core.secrets import redact
from outpace.core.units import duration, gib
from outpace.data.mixture import Mixture
from outpace.runtime import distributed
from outpace.runtime.device import choose_device
from outpace.runtime.hardware import Machine, detect
from outpace.runtime.switches import restored_switches
from outpace.train.alike import check_alike
from outpace.train.assemble import Session, assemble
from outpace.train.capabilities import capabilities
from outpace.train.corpus import facts_of, open_mixture
from outpace.train.environment import describe_environment, versions
from outpace.train.forecast import checkpoint_bytes, checkpoints_kept
from outpace.train.guard import Diverged
from outpace.train.initial import take_shape
from outpace.train.loop import agree, train
from outpace.train.plan import DatasetFacts, Plan, differences, identity, run_name
from outpace.train.plan_lines import data_line, print_plan
from outpace.train.planner import make_plan
from outpace.train.progress import Progress
from outpace.train.reminders import tell_of_other_code, tell_of_other_size, tell_of_others
from outpace.train.resume import check_elsewhere, check_startable, resume, saved_shape, will_resume
from outpace.train.rollback import roll_back
from outpace.train.stop import StopRequest
from outpace.train.watchdog import Watchdog

MEASURED = {
    "attention_backend", "attention_kernel", "cross_entropy", "compile", "micro_batch_size",
    "gradient_accumulation_steps", "predicted_memory_bytes", "tokens_per_step", "max_tokens", "lr",
    "epochs",
}  # fmt: skip
"""Settings of a plan that may follow from what a host has measured."""


def plan_run(
    config: RunConfig, set_by: SetBy, ranks: distributed.Ranks, *, make_data: bool = False
) -> tuple[Plan, Machine, Mixture, torch.device]:
    """Everything up to the plan. Writes nothing, except the default dataset with `make_data`."""
    device = choose_device(config.compute.device, ranks.local_rank)
    mixture = open_mixture(config.data.dataset, make=make_data, is_main=ranks.local_rank == 0)
    plan, machine = plan_for(config, set_by, ranks, facts_of(mixture, config), device)
    return plan, machine, mixture, device


def plan_for(
    config: RunConfig,
    set_by: SetBy,
    ranks: distributed.Ranks,
    facts: DatasetFacts,
    device: torch.device,
) -> tuple[Plan, Machine]:
    """The plan of a run on this machine, on a dataset with these facts."""
    machine = _as_one_process_sees(detect(device.type), ranks)
    plan = make_plan(config, set_by, machine, facts, ranks.world_size, capabilities(device))
    return plan, machine


def _as_one_process_sees(machine: Machine, ranks: distributed.Ranks) -> Machine:
    """Processes on the CPU of one host share its memory."""
    here = ranks.local_world_size
    if machine.device != "cpu" or here == 1:
        return machine
    return dataclasses.replace(
        machine,
        memory_bytes=machine.memory_bytes // here,
        available_bytes=machine.available_bytes // here,
    )


@restored_switches()
def run(config: RunConfig, set_by: SetBy, argv: list[str], stop: StopRequest) -> tuple[int, Path]:
    """Train. Returns the exit code (0 or 75) and the run folder, or raises OutpaceError."""
    # Before a dataset is made, or anything measured.
    config = take_shape(config, set_by, saved_shape(config, argv))
    ranks = distributed.ranks_from_environment()
    plan, machine, mixture, device = plan_run(config, set_by, ranks, make_data=True)
    run_identity = identity(config, plan, mixture.fingerprint)
    root = config.run.run_dir
    if root == "auto":
        root = str(RUNS / run_name(plan, mixture.name, run_identity))
    folder = RunFolder(Path(root))
    if config.run.run_dir == "auto" and ranks.is_main:
        tell_of_others(config, folder, argv)
    environment = describe_environment(plan, machine)
    lock = None
    looked_at = store.paths(folder.checkpoints)
    if ranks.is_main:
        check_startable(config, plan, folder, mixture, run_identity, environment)
        tell_of_other_code(folder)
        _check_hellaswag(config, set_by, plan, mixture)
        print_plan(plan, machine, data_line(mixture, plan), folder)
        _check_room(config, plan, folder)
    group = session = None
    was_finished = failed = False
    try:
        group = distributed.Group(ranks, device, 60 * config.safety.peer_timeout_minutes)
        if ranks.world_size > 1:
            check_alike(group, run_identity | _common_settings(config, plan), MEASURED)
            check_elsewhere(group, config, folder)
        watchdog = _watchdog(config, folder, ranks)
        # Assemble first: it refuses an unusable model, optimiser or dataset before anything is
        # written.
        session = assemble(
            config,
            plan,
            folder=folder,
            group=group,
            mixture=mixture,
            stop=stop,
            identity=run_identity,
            watchdog=watchdog,
            fresh=not group.broadcast(will_resume(config, folder)),
        )
        stop.listen()  # from here on a signal saves; before, there is nothing to save
        if ranks.is_main:
            tell_of_other_size(session)
            folder.create()
            lock = _lock(folder, looked_at)
            store.sweep(folder.root)
            store.sweep(folder.checkpoints)
            was_finished = _is_finished(folder, plan)
            if not was_finished:
                _write_start(session, set_by, machine, environment, argv)
        watchdog.start()
        progress = resume(session, environment)
        progress.run = group.broadcast(progress.run)  # a new one was made up by each process
        while True:
            try:
                finished = train(session, progress, machine, environment)
                break
            except Diverged as diverged:
                agree(session)  # no checkpoint is being written any more
                progress = roll_back(session, progress, diverged)
        watchdog.beat("ending")
        code = DONE if finished else STOPPED_RESUMABLE
        if ranks.is_main:
            _write_end(session, progress, finished, was_finished)
        group.barrier()  # torchrun ends the others when one leaves with 75
        return code, folder.root
    except Exception as error:
        failed = True
        known = distributed.lost_peer(error, ranks) or explain(error, folder.root)
        if group is not None:
            known = group.exchange_failure(known) or known
        if session is not None:
            session.saver.join()  # it writes STATUS.json, too
        if lock is not None:  # the run folder is ours to write in
            with contextlib.suppress(OSError, OutpaceError):  # its disk may be what failed
                _write_failure(folder, known)
        if known is error:
            raise
        raise known from error
    finally:
        with contextlib.ExitStack() as last:  # runs in reverse order, all of it, whatever fails
            if lock is not None:
                last.callback(lock.release)
            if session is not None:
                last.callback(session.watchdog.stop)
            if group is not None:
                last.callback(group.leave, failed=failed)
            if session is not None:
                session.loader.close()
                if session.shard_check is not None:
                    session.shard_check.close()


def _lock(folder: RunFolder, looked_at: list[Path]) -> FileLock:
    """The run's lock. RunInUse if another process has it, or had it since `looked_at` were the
    checkpoints, which is when it was decided that this command may continue from them."""
    lock = folder.lock()
    if store.paths(folder.checkpoints) != looked_at:
        lock.release()
        raise RunInUse(
            "RUN-IN-USE",
            f"another process has trained in {folder.root} while this one started",
            kept="the run",
            do="run the same command again",
        )
    return lock


def _check_hellaswag(config: RunConfig, set_by: SetBy, plan: Plan, mixture: Mixture) -> None:
    """If there are no HellaSwag questions: DataError if a flag asked for them, else a note, since a
    missing score is easily overlooked."""
    e = config.evaluation
    if plan.hellaswag_limit == 0 or mixture.tokenizer != "gpt2" or Path(e.hellaswag_path).exists():
        return
    flags = ("hellaswag_path", "hellaswag_limit", "hellaswag_every_steps", "hellaswag_protocol")
    if asked := [f for f in flags if set_by.get(f) == "flag" and getattr(e, f) != 0]:
        raise DataError(
            "HELLASWAG",
            f"--{asked[0]} was given, and there is no {e.hellaswag_path}",
            do="outpace prepare hellaswag",
        )
    note(f"HellaSwag is not scored: there is no {e.hellaswag_path} (outpace prepare hellaswag)")


def _is_finished(folder: RunFolder, plan: Plan) -> bool:
    """Whether the run was trained to its last step and that checkpoint is good, so that at most an
    evaluation is missing."""
    with contextlib.suppress(UsageError, OSError):
        state = read_state(folder)
        if state["state"] == "finished" and state.get("last_step") == plan.max_steps:
            newest = store.latest(folder.checkpoints, set_aside=False)
            return newest is not None and newest.step == plan.max_steps
    return False


def _check_room(config: RunConfig, plan: Plan, folder: RunFolder) -> None:
    """StorageError if there is no space for the checkpoints that will exist at the same time."""
    if not config.run.space_check:
        return
    below = existing_folder(folder.root)
    size = checkpoint_bytes(config, plan)
    there = sum(f.stat().st_size for p in store.paths(folder.checkpoints) for f in p.iterdir())
    there += store.remains_bytes(folder.checkpoints)  # removed once the lock is ours
    number = checkpoints_kept(config, plan)
    free = shutil.disk_usage(below).free
    if number * size > free + there:
        raise StorageError(
            "SPACE",
            f"{number} checkpoints of {gib(size)} are to be kept, {below} has {gib(free)} free",
            do="free space, choose another --run_dir, keep fewer checkpoints, or start anyway with "
            "--no_space_check",
        )


def _watchdog(config: RunConfig, folder: RunFolder, ranks: distributed.Ranks) -> Watchdog:
    def give_up(error: OutpaceError) -> None:
        if ranks.is_main:
            _write_failure(folder, error)

    minutes = config.safety.watchdog_minutes if config.safety.guard else 0.0
    return Watchdog(60 * minutes, folder.root, ranks.rank, give_up)


def _common_settings(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What must be equal in all processes, beside the run's identity."""
    evaluation = {k: v for k, v in vars(config.evaluation).items() if k != "hellaswag_path"}
    questions = Path(config.evaluation.hellaswag_path)
    digest = sha256_file(questions)[:8] if plan.hellaswag_limit and questions.is_file() else "none"
    return {**vars(config.safety), **evaluation, **plan.record()["plan"], "questions": digest}


def _write_start(
    s: Session, set_by: SetBy, machine: Machine, environment: dict[str, Any], argv: list[str]
) -> None:
    folder = s.folder
    changed = _changed_settings(folder, s.config)
    replace_file(folder.config, redact(to_toml(s.config, set_by)))
    replace_json(
        folder.plan,
        {
            "format": RUN_FORMAT,
            "command": argv,
            **s.plan.record(),
            "machine": vars(machine),
            "versions": versions(),
            "environment": environment,
            "dataset": s.mixture.record(),
        },
    )
    folder.write_status("running", **_last_checkpoint(folder))
    folder.event("started", command=argv, changed_settings=changed)


def _changed_settings(folder: RunFolder, config: RunConfig) -> list[str]:
    """What this command line sets differently from the run's previous one."""
    try:
        before = tomllib.loads(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    then = {
        k: v for values in before.values() if isinstance(values, dict) for k, v in values.items()
    }
    now = flat(config)
    return differences(
        {k: then[k] for k in then if k in now}, {k: now[k] for k in now if k in then}
    )


def _write_end(s: Session, progress: Progress, finished: bool, was_finished: bool) -> None:
    """Print and record how the run ended. If it `was_finished` before, its record stays that of the
    process that trained it."""
    last = _last_checkpoint(s.folder)
    where = f"{progress.step:,} of {s.plan.max_steps:,} steps"
    if finished:
        digest = store.weights_sha256(dict(s.model.named_parameters()))
        if not was_finished:
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


def _write_failure(folder: RunFolder, error: OutpaceError) -> None:
    folder.event("failed", error=str(error))
    last = _last_checkpoint(folder)
    folder.write_status("failed", code=error.exit_code, reason=str(error), **last)


def _last_checkpoint(folder: RunFolder) -> dict[str, Any]:
    names = [p.name for p in store.paths(folder.checkpoints)]
    return {"last_verified_checkpoint": names[-1] if names else None, "resumable": bool(names)}
