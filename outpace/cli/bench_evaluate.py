"""`outpace bench evaluate`: HellaSwag's speed and answers beside build-nanogpt's and lm-eval's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.config.schema import HELLASWAG_PATH
from outpace.core.log import say

WIDTH = 3.0
"""Factor on the initial weights, so that the endings' scores differ clearly."""


@dataclass
class Options:
    """Score the same HellaSwag questions with outpace, build-nanogpt's script and lm-eval, in turns
    on this CPU: how long each takes, and whether they give the same answers."""

    build_nanogpt: Path | None = None
    """A checkout of karpathy/build-nanogpt, for its hellaswag.py."""
    lm_eval: bool = True
    """Also lm-eval, which must be installed."""
    model: str = ""
    """A run, a checkpoint or Hugging Face folder. Default: the 124M shape, wide random weights."""
    hellaswag_path: Path = Path(HELLASWAG_PATH)
    """The questions, as `outpace prepare hellaswag` leaves them."""
    questions: Annotated[int, Range(1, 10_042)] = 100
    """How many questions, spread evenly over the split."""
    turns: Annotated[int, Range(1, 1000)] = 5
    """Number of turns of each; each turn takes a part of the questions."""
    threads: Annotated[int, Range(1, 10_000)] = 2
    """CPU threads of each."""
    output: Path | None = None
    """Result file. Default: results/evaluate-cpu.json."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace bench evaluate")

    import importlib.util

    import torch

    from outpace.bench.evaluation import check_checkout, compare
    from outpace.bench.generation import random_model
    from outpace.config.presets import SIZES
    from outpace.core.errors import UsageError
    from outpace.train.load_model import load_model

    if options.lm_eval and importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "NO-PEER",
            "lm_eval is not installed",
            do="pip install 'outpace[dev]', or leave it out with --no_lm_eval",
        )
    if options.build_nanogpt is not None:
        check_checkout(options.build_nanogpt)
    torch.set_num_threads(options.threads)
    if options.model:
        name, model = options.model, load_model(options.model, torch.device("cpu")).model
    else:
        name = "124M, random"
        model = random_model(SIZES["124M"].shape(), times=WIDTH)
    path = compare(
        model.eval(),
        name,
        options.hellaswag_path,
        questions=options.questions,
        turns=min(options.turns, options.questions),
        build_nanogpt=options.build_nanogpt,
        lm_eval=options.lm_eval,
        output=options.output,
    )
    say(str(path))
    return 0
