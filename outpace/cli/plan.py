"""`outpace plan`: what `outpace train` with the same flags would do, and why; starts nothing."""

from dataclasses import dataclass
from typing import Annotated

from outpace.config.load import load
from outpace.config.ranges import Range
from outpace.config.schema import RunConfig
from outpace.core.log import say, show_json


@dataclass
class Options(RunConfig):
    """Show what `outpace train` with the same flags would do, why, and what to expect: memory,
    speed, time, energy, cost, disk. Starts nothing."""

    machine: str = ""
    """Plan for other GPUs, from the hardware table: h100, h100x8, a100-40, rtx4090, ... Empty: for
    this machine."""
    price_per_hour: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Price of the whole machine per hour, in any currency, to estimate the cost; 0: no cost."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    """Print the plan; 0, or the exit code with which training would refuse to start."""
    options, set_by = load(argv, prog="outpace plan", schema=Options)
    assert isinstance(options, Options)

    from outpace.tools.expect import expect, expect_elsewhere
    from outpace.train.forecast import lines
    from outpace.train.plan_lines import print_plan

    price = options.price_per_hour
    if options.machine:
        expected = expect_elsewhere(options, set_by, options.machine, price)
    else:
        expected = expect(options, set_by, price)
    if options.json:
        show_json(expected.record())
    else:
        print_plan(expected.plan, expected.machine, expected.data, None, reason=say)
        for line in lines(expected.forecast, expected.plan):
            say(line)
    return 0
