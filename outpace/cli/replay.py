"""`outpace replay RUN`: run a saved bad batch again to find the cause."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.log import show, show_json
from outpace.core.runfolder import RunFolder


@dataclass
class Options:
    """Rerun the forward and backward of a batch that a run kept because its numbers were bad, in
    the run's precision and in fp32."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    step: Annotated[int | None, Range(1, 1_000_000_000)] = None
    """Step of the incident. Default: the newest."""
    model: str | None = None
    """Weights to use: a checkpoint, for example. Default: the newest checkpoint before the step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace replay")

    from outpace.checkpoint import store
    from outpace.runtime.device import choose_device
    from outpace.runtime.precision import precision_name
    from outpace.tokenizer import get_tokenizer
    from outpace.tools.replay import find, read, replay, weights_before

    folder = RunFolder(options.run)
    incident = find(folder, options.step)
    about, tokens = read(incident)
    reference, later = options.model, ""
    if reference is None:
        path = weights_before(folder, incident)
        reference = str(path)
        if store.step_of(path) >= about["step"]:
            later = ", because no older ones are left"
    device = choose_device(options.device, 0)
    precisions = dict.fromkeys([about["mixed_precision"], "no"])
    results = [replay(reference, tokens, device, precision) for precision in precisions]
    if options.json:
        record = {"incident": about, "weights": reference, "replays": [asdict(r) for r in results]}
        show_json(record)
        return 0
    show(
        f"step {about['step']:,} was {about['bad']}: loss {about['loss']}, gradient norm "
        f"{about['grad_norm']}; {len(tokens):,} sequences of {tokens.shape[1] - 1} tokens"
    )
    show(f"with the weights of {reference}{later}:")
    tokenizer = get_tokenizer(about["tokenizer"])
    for result in results:
        name = precision_name(result.precision)
        show(f"  {name}: loss {result.loss:.4f}, gradient norm {result.grad_norm:.4g}")
        if result.sequences_not_finite:
            show(f"    sequences whose loss is not finite: {result.sequences_not_finite}")
        if result.parameters_not_finite:
            show(f"    gradients that are not finite: {', '.join(result.parameters_not_finite)}")
        worst, loss = result.worst_sequences[0]
        text = tokenizer.decode(tokens[worst, :64].tolist())
        show(f"    highest loss {loss:.4f} in sequence {worst}: {text!r}")
        largest = ", ".join(f"{n} {norm:.3g}" for n, norm in result.largest_gradients)
        show(f"    largest gradients: {largest}")
    return 0
