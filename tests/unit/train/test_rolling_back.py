"""What a rollback takes over from the run so far, and what it forgets."""

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from outpace.checkpoint.retention import Retention
from outpace.core.runfolder import RunFolder
from outpace.runtime.distributed import Group, Ranks
from outpace.train import rollback
from outpace.train.guard import Diverged, Guard, Incident, Values
from outpace.train.progress import Progress

BAD = Values(23, math.nan, math.nan, skipped=True)


def test_time_data_and_pieces_stay_and_the_streak_of_bad_steps_does_not(tmp_path, monkeypatch):
    """Without a checkpoint the run goes back to the initial weights."""
    guard = Guard(most_skipped=3, threshold=20.0, skip_spikes=False)
    guard.pending = BAD
    for _ in range(2):
        guard.absorb(BAD)
    session = SimpleNamespace(
        config=SimpleNamespace(safety=SimpleNamespace(max_rollbacks=3)),
        plan=SimpleNamespace(mixed_precision="no"),
        folder=RunFolder(tmp_path),
        guard=guard,
        retention=Retention(),
        group=Group(Ranks(), torch.device("cpu")),
    )
    monkeypatch.setattr(rollback, "_start_over", lambda s: None)
    before = Progress(step=23, elapsed_s=50.0, left_at=[10], oldest=5, data_shift=2, pieces=4)
    diverged = Diverged(21, 23, Incident(BAD, "not finite", math.inf, math.inf))
    back = rollback.roll_back(session, before, diverged)
    assert asdict(back) == {
        "step": 0, "elapsed_s": 50.0, "run": before.run, "left_at": [10, 0], "oldest": 0,
        "data_shift": 25, "pieces": 4,
    }  # fmt: skip
    assert guard.pending is None
    for _ in range(2):
        guard.absorb(BAD)
    with pytest.raises(Diverged):
        guard.absorb(BAD)
