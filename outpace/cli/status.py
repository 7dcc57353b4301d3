"""`outpace status RUN`: a run's state and progress; read-only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from outpace.config.load import parse_flags
from outpace.core.log import show, show_json
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import last_step, read_state
from outpace.core.units import count, duration


@dataclass
class Options:
    """Show a run's state: running, interrupted (its process is gone), stopped, finished, failed."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace status")
    state = read_state(RunFolder(options.run))
    if options.json:
        show_json(state)
        return 0
    logged, most = state.get("last_logged_step"), state.get("max_steps")
    of_most = "" if most is None else f" of {most}"
    show(f"{options.run}: {state['state']}, step {last_step(state)}{of_most}")
    if state["held"]:
        show(f"  process: {state.get('pid')} on {state.get('host')}")
        if "last_record_age_s" in state:
            age, rate = state["last_record_age_s"], state.get("tokens_per_second")
            speed = f", {count(rate)} tokens per second" if isinstance(rate, int | float) else ""
            show(f"  last record: step {logged}, {duration(age)} ago{speed}")
    if state.get("degraded"):
        show("  degraded: some records could not be written")
    for key in ("reason", "last_verified_checkpoint", "resumable", "weights_sha256", "time"):
        if state.get(key) not in (None, [], {}):
            show(f"  {key}: {state[key]}")
    return 0
