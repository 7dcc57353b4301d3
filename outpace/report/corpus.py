"""The corpus on the page: the lengths of its documents."""

from collections.abc import Sequence

import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

from outpace.core import units
from outpace.report.figures import Chart, blank
from outpace.report.load import Run
from outpace.report.style import PALETTE

KEY = "document_lengths"


def lengths_chart(runs: Sequence[Run]) -> Chart | None:
    """Documents by length, for a single run that recorded them; else None."""
    bins = runs[0].dataset.get(KEY) if len(runs) == 1 else None
    if not isinstance(bins, list) or not all(_is_bin(entry) for entry in bins) or not bins:
        return None
    figure = blank(230)
    names = [f"{units.count(low)} to {units.count(high)}" for low, high, _ in bins]
    figure.add_trace(
        go.Bar(
            x=[units.count(low) for low, _, _ in bins],
            y=[count for _, _, count in bins],
            customdata=names,
            hovertemplate="%{customdata} tokens: %{y:,} documents<extra></extra>",
            marker={"color": PALETTE[0]},
        )
    )
    figure.update_layout(showlegend=False, hovermode="closest", bargap=0.1)
    figure.update_xaxes(title_text="tokens, from", type="category")
    figure.update_yaxes(rangemode="tozero")
    return Chart(
        "document-lengths", "Length of documents", "training documents, by powers of two", figure
    )


def _is_bin(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(type(value) is int and 0 <= value < 2**63 for value in entry)
    )
