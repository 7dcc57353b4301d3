"""Rolling back after too many bad steps: to an older checkpoint, then on past the bad data."""

from outpace.checkpoint import store
from outpace.checkpoint.retention import is_ancestor, is_due
from outpace.core.errors import NumericsError
from outpace.core.log import warn
from outpace.model.gpt2 import GPT2
from outpace.train.assemble import Session, build_guard
from outpace.train.guard import Diverged
from outpace.train.initial import initialise
from outpace.train.progress import Progress
from outpace.train.resume import load_checkpoint

CLEAN_STEPS = 10
"""Good steps after a checkpoint before it counts as one to roll back to."""


def roll_back(s: Session, progress: Progress, diverged: Diverged) -> Progress:
    """Load the newest checkpoint that was followed by `CLEAN_STEPS` good steps, else the oldest,
    else the initial weights, and skip the data up to here. NumericsError if the run has rolled back
    too often."""
    if progress.lineage >= s.config.safety.max_rollbacks:
        raise NumericsError(
            "NON-FINITE",
            f"steps {diverged.first:,} to {diverged.last:,} were skipped, as their loss or "
            f"gradient was bad, and the run has rolled back {progress.lineage} times",
            kept="the weights, which these steps did not change, and the last checkpoint",
            do="choose a smaller --lr or a longer --warmup_steps"
            + (", or --mixed_precision bf16" if s.plan.mixed_precision == "fp16" else "")
            + "; `outpace replay RUN` looks into the batch",
        )
    found = _before(s, progress, diverged.first - 1) if s.group.ranks.is_main else None
    checkpoint, oldest = s.group.broadcast(found)  # the others may not have the run folder
    if checkpoint is not None:
        then = load_checkpoint(s, checkpoint)
    else:
        _start_over(s)
        then = Progress(run=progress.run)
    s.guard.forget_streak()
    back = Progress(
        step=then.step,
        elapsed_s=progress.elapsed_s,
        run=progress.run,
        left_at=[*progress.left_at, then.step],
        oldest=min(oldest, then.step),
        data_shift=diverged.last + progress.data_shift - then.step,
        pieces=progress.pieces,
    )
    if s.group.ranks.is_main:
        where = checkpoint.path.name if checkpoint else "the initial weights"
        warn(
            f"[ROLLBACK] steps {diverged.first:,} to {diverged.last:,} were skipped; continuing "
            f"from {where}, past their data"
        )
        s.folder.forget_after(then.step)
        s.folder.event(
            "rollback",
            step=diverged.last,
            back_to=then.step,
            path=where,
            first_bad_step=diverged.first,
            data_shift=back.data_shift,
        )
    return back


def _start_over(s: Session) -> None:
    """Model, optimiser and guard as at the beginning of the run."""
    fresh = GPT2(s.plan.shape)  # on the CPU, as the first time, for equal bits
    initialise(fresh, s.config.model.init_from, s.plan.seed)
    s.model.load_state_dict(fresh.state_dict())
    s.trainable.optimizer.state.clear()
    s.guard = build_guard(s.config, s.plan)  # beside later losses the first ones would be spikes


def _before(s: Session, progress: Progress, step: int) -> tuple[store.Checkpoint | None, int]:
    """A checkpoint to roll back to: the newest of `CLEAN_STEPS` before `step`, or the oldest; and
    the oldest step that counts. Only one that was due and lasts: a run that was stopped or killed
    on its way, or evaluated at other steps, goes back to where another would."""
    due = [
        path
        for path in store.paths(s.folder.checkpoints)
        if store.run_of(path) == progress.run
        and is_due(path)
        and is_ancestor(path, progress.left_at)
        and store.fault(path) is None
    ]
    good, oldest = s.retention.lasting(due, progress.oldest)
    early = [path for path in good if store.step_of(path) <= step - CLEAN_STEPS]
    return store.open_verified((early or good[:1])[-1]) if good else None, oldest
