"""`outpace doctor`: check this machine for problems before a run hits them."""

from dataclasses import dataclass
from pathlib import Path

from outpace.config.load import parse_flags
from outpace.core.log import show, show_json


@dataclass
class Options:
    """Check versions, threads, memory, GPUs, compiler, disks, locks and data. Changes nothing."""

    run: Path | None = None
    """Also check this run folder: its state, its checkpoints' hashes, room for the next one."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    """Print every finding; return 0, or the exit code of the first fault."""
    options: Options = parse_flags(Options, argv, prog="outpace doctor")

    from outpace.tools.doctor import examine

    found = []
    for finding in examine(options.run):
        found.append(finding)
        if not options.json:
            do = f"\n{'':9}do: {finding.do}" if finding.do else ""
            show(f"{finding.verdict:<8} {finding.check}: {finding.found}{do}")
    if options.json:
        show_json([f.record() for f in found])
    for finding in found:
        if finding.error:
            raise finding.error
    return 0
