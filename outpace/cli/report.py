"""`outpace report RUN [RUN...]`: a self-contained HTML page about one run, or several compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Options:
    """Write a run's report as one self-contained HTML file. Several runs are compared."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders, such as runs/NAME. A run that is still training can be read too."""
    output: Path | None = None
    """The HTML file to write. Default: report.html in the run folder; for several runs,
    comparison.html in the first one's."""


def run(argv: list[str]) -> int:
    """Parse `argv`, write the page, print its path."""
    from outpace.config.load import parse_flags
    from outpace.core.errors import UsageError
    from outpace.core.log import say
    from outpace.core.runfolder import RunFolder

    options: Options = parse_flags(Options, argv, prog="outpace report")
    if not options.runs:
        raise UsageError("NO-RUN", "no run folder named", do="outpace report runs/NAME")

    from outpace.report.page import write_report

    first = RunFolder(options.runs[0])
    output = options.output or (first.report if len(options.runs) == 1 else first.comparison)
    say(str(write_report(list(options.runs), output)))
    return 0
