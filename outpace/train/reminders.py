"""What may be other than its user thinks as a run begins: said, and never in the way."""

import contextlib
import json
import re

from outpace.config.schema import RunConfig
from outpace.core.errors import OutpaceError
from outpace.core.log import note, warn
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import read_state, runs_begun
from outpace.model.cost import parameters
from outpace.train.assemble import Session
from outpace.train.corpus import trained_on
from outpace.train.environment import source_digest

LENGTH = re.compile("--max[_-](?:steps|tokens)(=.*)?")


def tell_of_others(config: RunConfig, folder: RunFolder, argv: list[str]) -> None:
    """Mention a run that the user may mean to continue, but which this command does not: one that
    this very command began, when `--dataset auto` found another dataset; or one that differs only
    in its length."""
    for other, began in runs_begun():
        if other.root == folder.root:
            continue
        with contextlib.suppress(OutpaceError, OSError, ValueError, LookupError, TypeError):
            if config.data.dataset == "auto" and began == argv:
                if read_state(other)["state"] != "finished":
                    warn(
                        f"this command began {other.root}, which is not finished; to continue "
                        f"it: --dataset {trained_on(other)[0]}"
                    )
            elif not folder.root.exists() and _but_for_length(began) == _but_for_length(argv):
                note(
                    f"{other.root} differs only in its length; to continue it: "
                    f"--run_dir {other.root}"
                )


def tell_of_other_code(folder: RunFolder) -> None:
    """Say if the run began with other code: edited in between, the same command goes on with it."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        before = json.loads(folder.plan.read_text(encoding="utf-8"))["versions"]["source"]
        if before != (now := source_digest()):
            warn(
                f"[CODE-CHANGED] outpace's code was {before[:8]} when {folder.root} began, and is "
                f"{now[:8]}; the run goes on: for a new one, another --run_dir"
            )


def tell_of_other_size(s: Session) -> None:
    """Say if the plan's figures, which are GPT-2's, are not those of the model in `gpt2.py`."""
    counted = sum(p.numel() for p in s.model.parameters())
    if counted != (planned := parameters(s.plan.shape, padded=True)):
        warn(
            f"[NOT-GPT-2] the model has {counted:,} parameters, and the plan counts {planned:,}: "
            "what it says of memory, time and MFU is GPT-2's (model/cost.py)"
        )


def _but_for_length(argv: list[str]) -> list[str]:
    words = iter(argv)
    kept = []
    for word in words:
        if not (length := LENGTH.fullmatch(word)):
            kept.append(word)
        elif length[1] is None:
            next(words, None)
    return kept
