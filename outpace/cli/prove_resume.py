"""`outpace prove-resume RUN`: check that resuming is exact to the last bit."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.core.errors import CheckpointError
from outpace.core.log import note, show, show_json, warn
from outpace.core.runfolder import RunFolder


@dataclass
class Options:
    """Train again from one checkpoint of a run to the next, in another folder, and compare the
    hashes of weights and moments. The run itself is only read."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    at: Annotated[int | None, Range(0, 1_000_000_000)] = None
    """Step of the checkpoint to begin with; 0: the beginning. Default: the last but one."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace prove-resume")

    from outpace.tools.prove import prove_resume

    with tempfile.TemporaryDirectory(prefix="outpace-prove-") as scratch:
        proof = prove_resume(RunFolder(options.run), Path(scratch) / "run", options.at)
    if proof is None:
        return 0
    if options.json:
        show_json(asdict(proof) | {"equal": proof.equal})
    else:
        show(f"{options.run}: step {proof.begin:,} to {proof.end:,}, trained again")
        for name, recorded in proof.recorded.items():
            again = proof.again[name]
            verdict = "equal" if recorded == again else f"differs: {again}"
            show(f"  {name:<22} {recorded}  {verdict}")
    if proof.environment_changes:
        warn("equal bits are not promised here: " + ", ".join(proof.environment_changes))
    if proof.equal:
        note("the resume is exact: equal to the last bit")
        return 0
    raise CheckpointError(
        "NOT-REPRODUCED",
        f"step {proof.end} differs from the run's own",
        do="undo those changes, then run it again"
        if proof.environment_changes
        else "train with --deterministic on, and run this on the same machine",
    )
