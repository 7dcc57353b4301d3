"""`outpace plan`: what `outpace train` with the same flags would do, and why; starts nothing."""

import json
from dataclasses import dataclass

from outpace.config.load import load
from outpace.config.schema import RunConfig
from outpace.core.log import show


@dataclass
class Options(RunConfig):
    """Show what `outpace train` with the same flags would do, and why. Starts nothing."""

    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    """Print the plan; 0, or the exit code with which training would refuse to start."""
    options, set_by = load(argv, prog="outpace plan", schema=Options)
    assert isinstance(options, Options)

    from outpace.runtime.distributed import from_environment
    from outpace.train.run import plan_run, print_plan

    plan, machine, dataset, _ = plan_run(options, set_by, from_environment())
    if options.json:
        show(json.dumps({**plan.record(), "machine": vars(machine)}, indent=2))
    else:
        print_plan(plan, machine, dataset, None)
    return 0
