"""Runs -> one self-contained HTML file: plotly.js is inside, and nothing is requested.

A Content-Security-Policy allows only the page's own scripts, by their hashes, and forbids every
request. So even text that slipped through the escaping could not run or load anything.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped, unused-ignore]

from outpace.core.files import replace_file
from outpace.core.runfolder import now
from outpace.report import sections
from outpace.report.corpus import lengths_chart
from outpace.report.figures import Chart, charts
from outpace.report.load import Run, load_runs
from outpace.report.markup import clock, embed_json, escape, section
from outpace.report.style import CSS, DARK, PALETTE, SCRIPT
from outpace.report.summary import summarise


def write_report(runs: list[Path], output: Path) -> Path:
    """Write the page of `runs` to `output` atomically, and return `output`.

    UsageError NOT-A-RUN if a folder is not a run folder; StorageError if it cannot be written.
    """
    replace_file(output, page(load_runs(runs)))
    return output


def page(runs: Sequence[Run]) -> str:
    """The HTML of the whole page."""
    made = [c for c in (*charts(runs), lengths_chart(runs)) if c is not None]
    plotly = _script(get_plotlyjs())
    draw = _script(SCRIPT)
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; script-src {_hash(plotly)} {_hash(draw)}"
    )
    drawn = (
        f'<script type="application/json" id="figures">{embed_json(_figures(made))}</script>\n'
        f'<script type="application/json" id="dark">{embed_json(DARK)}</script>\n'
        f"<script>{plotly}</script>\n<script>{draw}</script>\n"
    )
    made_at = escape(clock(now()))
    where = escape(", ".join(str(run.root) for run in runs))
    name = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    body = _one(runs[0], made) if len(runs) == 1 else _several(runs, made)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(name)}, outpace report</title>\n"
        f"<style>{CSS}{_run_colours()}</style></head>\n<body><main>\n{body}</main>\n"
        f"<footer>Made {made_at} from the records in {where}.</footer>\n"
        f"{drawn if made else ''}</body></html>\n"
    )


def _one(run: Run, made: Sequence[Chart]) -> str:
    summary = summarise(run)
    return (
        sections.title(run, summary)
        + sections.tiles(summary)
        + _charts(made)
        + sections.details(run)
    )  # fmt: skip


def _several(runs: Sequence[Run], made: Sequence[Chart]) -> str:
    head = (
        '<header><p class="eyebrow">outpace run report</p>'
        f"<h1>{len(runs)} runs compared</h1></header>"
    )
    each = "".join(
        f'<details class="run"><summary>{escape(run.name)}</summary>'
        f"{sections.details(run) or '<p>There are no other records.</p>'}</details>"
        for run in runs
    )
    table = section("Results", sections.comparison(runs))
    return head + table + _charts(made, sections.legend(runs)) + section("Run by run", each)


def _charts(made: Sequence[Chart], legend: str = "") -> str:
    if not made:
        return ""
    return f'<div class="charts">{legend}' + "".join(map(_chart, made)) + "</div>\n"


def _chart(chart: Chart) -> str:
    note = f"<p>{escape(chart.note)}</p>" if chart.note else ""
    label = escape(f"{chart.title}. {chart.note}")
    return (
        f'<figure class="chart{" wide" if chart.wide else ""}">'
        f"<figcaption><h3>{escape(chart.title)}</h3>{note}</figcaption>"
        f'<div data-figure="{chart.key}" role="img" aria-label="{label}" '
        f'style="height:{chart.figure.layout.height}px"></div></figure>\n'
    )


def _figures(made: Sequence[Chart]) -> dict[str, object]:
    return {chart.key: chart.figure.to_plotly_json() for chart in made}


def _run_colours() -> str:
    light = ";".join(f"--run{i}:{colour}" for i, colour in enumerate(PALETTE))
    dark = ";".join(f"--run{i}:{DARK[colour]}" for i, colour in enumerate(PALETTE))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _script(text: str) -> str:
    # A browser turns CRLF into LF before it hashes; our hash must cover the same bytes.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    assert not re.search("</script|<!--", text, re.IGNORECASE), "the script would end early"
    return text


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
