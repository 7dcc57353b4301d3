"""`outpace bench optimizers`: optimisers compared by final loss and by the tokens to reach it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from outpace.config.check import RANGES
from outpace.config.load import load
from outpace.config.schema import RunConfig
from outpace.core.errors import UsageError
from outpace.core.log import say

FACTORS = (1.0, 3.0, 9.0)
INSTEAD = {"optimizer": "--optimizers", "run_dir": "--work"}


@dataclass
class Options(RunConfig):
    """Compare optimisers by the loss they reach: a training run with each, at several learning
    rates, from the same weights on the same batches. Takes train's flags; continues if stopped."""

    optimizers: tuple[str, ...] = ("adamw", "muon")
    """Rows of the optimiser table; the others are compared with the first."""
    learning_rates: Annotated[tuple[float, ...], RANGES["lr"]] = ()
    """Peak learning rates for each. Default: 1, 3 and 9 times --lr."""
    work: Path = Path("runs/optimizers")
    """Folder for the runs."""
    output: Path | None = None
    """Result file. Default: results/optimizers-DEVICE.json."""


def run(argv: list[str]) -> int:
    prog = "outpace bench optimizers"
    options, set_by = load(argv, prog=prog, schema=Options)
    assert isinstance(options, Options)
    for flag, instead in INSTEAD.items():
        if set_by[flag] == "flag":
            what = f"--{flag} has no effect in {prog}"
            raise UsageError("ONE-OF-MANY", what, do=f"give {instead}")

    if not options.optimizers:
        raise UsageError("BAD-VALUE", "--optimizers is empty", do="name at least one")

    from outpace.bench.optimizers import Race, race
    from outpace.optim import OPTIMIZERS
    from outpace.runtime.distributed import Ranks
    from outpace.train.plan_lines import data_line, print_plan
    from outpace.train.run import plan_run

    for name in options.optimizers:
        OPTIMIZERS.check(name)
    plan, machine, mixture, _ = plan_run(options, set_by, Ranks(), make_data=True)
    print_plan(plan, machine, data_line(mixture, plan), None)
    rates = options.learning_rates or tuple(factor * plan.lr for factor in FACTORS)
    each = list(dict.fromkeys(options.optimizers)), list(dict.fromkeys(rates))
    data = {"name": mixture.name, "fingerprint": mixture.fingerprint}
    runs = Race(options, set_by, plan, data, *each, options.work)
    say(str(race(runs, options.output)))
    return 0
