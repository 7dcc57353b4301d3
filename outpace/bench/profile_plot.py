"""The plot of `outpace bench profile`: each part of a step beside its floor."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

from outpace.bench.profile_parts import Part
from outpace.core.errors import StorageError

ABOVE, FLOOR = "#c05a1f", "#17698a"


def plot(parts: Sequence[Part], title: str, path: Path) -> None:
    """Write a self-contained HTML page. StorageError if it cannot be written."""
    names = [p.name for p in reversed(parts)]
    floors = [min(p.floor_ms or 0.0, p.ms) for p in reversed(parts)]
    above = [p.ms - f for p, f in zip(reversed(parts), floors, strict=True)]
    figure = go.Figure(
        [
            go.Bar(y=names, x=floors, orientation="h", name="its floor", marker_color=FLOOR),
            go.Bar(y=names, x=above, orientation="h", name="above it", marker_color=ABOVE),
        ]
    )
    figure.update_layout(
        barmode="stack",
        template="plotly_white",
        title=title,
        xaxis_title="milliseconds of one step, under the profiler",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        margin={"l": 220, "t": 110},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})
    except OSError as error:
        raise StorageError(
            "PLOT", f"cannot write {path}: {error.strerror}", do="choose another --plot"
        ) from error
