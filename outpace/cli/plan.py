"""`outpace plan`: what `outpace train` with the same flags would do, and why. Starts nothing."""

import json

from outpace.config.load import load


def run(argv: list[str]) -> int:
    """Takes train's flags, and --json."""
    as_json = "--json" in argv
    config, set_by = load([a for a in argv if a != "--json"], prog="outpace plan")

    from outpace.runtime.distributed import from_environment
    from outpace.train.run import plan_run, print_plan

    plan, machine, dataset, _ = plan_run(config, set_by, from_environment())
    if as_json:
        print(json.dumps({**plan.record(), "machine": vars(machine)}, indent=2))
    else:
        print_plan(plan, machine, dataset, None)
    return 0
