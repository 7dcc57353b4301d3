"""`outpace bench profile`: where a training step spends its time, against its roofline."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from outpace.config.load import load
from outpace.config.ranges import Range
from outpace.config.schema import RunConfig
from outpace.core.log import say


@dataclass
class Options(RunConfig):
    """Where the time of one training step goes: by part of GPT-2, each beside its roofline bound,
    and as a trace for Perfetto. Takes train's flags."""

    steps: Annotated[int, Range(1, 1000)] = 3
    """Steps to profile; as many are timed without the profiler."""
    skip_steps: Annotated[int, Range(1, 10_000)] = 5
    """First steps, which do not count: compiling, caches, clocks."""
    trace: Path = Path("runs/profile.json.gz")
    """The trace, for https://ui.perfetto.dev."""
    plot: Path = Path("runs/profile.html")
    """The table as a plot."""
    output: Path | None = None
    """Result file. Default: results/profile-DEVICE.json."""


def run(argv: list[str]) -> int:
    options, set_by = load(argv, prog="outpace bench profile", schema=Options)
    assert isinstance(options, Options)

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded

    from outpace.bench.profile import named_kernels, profile_step
    from outpace.runtime.distributed import Group, Ranks
    from outpace.tokenizer import get_tokenizer
    from outpace.train.assemble import build_trainable
    from outpace.train.plan_lines import data_line, print_plan
    from outpace.train.run import plan_run

    ranks = Ranks()
    plan, machine, mixture, device = plan_run(options, set_by, ranks)
    print_plan(plan, machine, data_line(mixture, plan), None)
    with named_kernels(device):
        trainable = build_trainable(
            options,
            plan,
            group=Group(ranks, device),
            end_of_text=get_tokenizer(mixture.tokenizer).end_of_text,
        )
        path = profile_step(
            trainable,
            plan,
            mixture,
            steps=options.steps,
            skip_steps=options.skip_steps,
            trace=options.trace,
            plot_path=options.plot,
            output=options.output,
        )
    say(str(path))
    return 0
