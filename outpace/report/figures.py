"""Runs -> plotly figures. Pure. Colours are those of light mode; the page's script swaps them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

from outpace.core.published import HELLASWAG_CHANCE
from outpace.report.load import Run, number, series
from outpace.report.markup import figure_text
from outpace.report.style import FAINT, GRID, INK, MUTED, PALETTE, SURFACE
from outpace.report.summary import INTERVAL_95, published_hellaswag

MOST_POINTS = 1200
"""Most points of a curve on the page, more than its pixels. Each bucket keeps its extremes."""
FEW_POINTS = 25
"""With fewer points than this, each gets a marker and nothing is smoothed."""


@dataclass(frozen=True)
class Chart:
    """A figure with its title and note."""

    key: str
    title: str
    note: str
    figure: go.Figure
    wide: bool = False


@dataclass(frozen=True)
class Axis:
    """An x axis: the values of the records under `key`, divided by `unit`."""

    key: str
    unit: float
    title: str


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All charts for which the records have data."""
    tokens, time = tokens_axis(runs), time_axis(runs)
    small: tuple[tuple[str, str, str, str, dict[str, str]], ...] = (
        ("tokens_per_second", "Throughput", "tokens per second", ".3s", {}),
        ("grad_norm", "Gradient norm", "before clipping", ".3g", {}),
        ("lr", "Learning rate", "", ".3g", {"exponentformat": "e"}),
        ("mfu", "Model FLOP/s utilisation", "of the device's peak", ".1%", {"tickformat": ".0%"}),
    )
    made = [
        loss_chart(runs, tokens, "loss-tokens", wide=True),
        loss_chart(runs, time, "loss-time"),
        hellaswag_chart(runs, tokens),
        *(curve_chart(runs, tokens, *options) for options in small),
    ]
    return [chart for chart in made if chart is not None]


def tokens_axis(runs: Sequence[Run]) -> Axis:
    """Tokens, in the unit that suits the longest run; steps if the records have no tokens."""
    most = _largest(runs, "tokens")
    if most <= 0:
        return Axis("step", 1, "steps")
    for unit, word in ((1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens")):
        if most >= unit:
            return Axis("tokens", unit, word)
    return Axis("tokens", 1, "tokens")


def time_axis(runs: Sequence[Run]) -> Axis:
    """Training time, in the unit that suits the longest run."""
    most = _largest(runs, "elapsed_s")
    for unit, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if most >= 2 * unit:
            return Axis("elapsed_s", unit, f"{word} of training")
    return Axis("elapsed_s", 1, "seconds of training")


def loss_chart(runs: Sequence[Run], axis: Axis, key: str, wide: bool = False) -> Chart | None:
    """Training loss, faint and smoothed; validation as markers; unigram entropy dashed.

    The wide chart's range includes the entropies, and its x axis is logarithmic if the tokens span
    enough. The small chart is linear.
    """
    figure, values, solo = blank(350 if wide else 270), [], len(runs) == 1
    smoothed = False
    for i, run in enumerate(runs):
        colour = PALETTE[i % len(PALETTE)]
        x, y = _points(run.metrics, axis, "loss")
        name = "training" if solo else figure_text(run.name)
        group = "" if solo else f"run{i}"
        smoothed |= _curve(figure, x, y, name, colour, group, ".3f", faint=solo)
        val_x, val_y = _points(run.task("validation"), axis, "loss")
        values += y + val_y
        if val_x:
            figure.add_scatter(
                x=val_x, y=val_y, mode="lines+markers" if solo else "markers",
                name="validation" if solo else f"{name}, validation", legendgroup=group,
                showlegend=solo or not x, hovertemplate="%{y:.4f}",
                line={"color": PALETTE[1] if solo else colour, "width": 1.5},
                marker={"size": 8, "color": PALETTE[1] if solo else colour,
                        "line": {"width": 1.5, "color": SURFACE}},
            )  # fmt: skip
    if not values:
        return None
    figure.update_layout(showlegend=solo)
    found = (number(run.dataset, "unigram_entropy") for run in runs)
    entropies = sorted({round(entropy, 3) for entropy in found if entropy is not None})[:3]
    above = _clip(figure, values, entropies if wide else [])
    low, high = figure.layout.yaxis.range
    for entropy in entropies:
        if low < entropy < high:
            _reference(figure, entropy, f"unigram entropy {entropy:.2f}")
    logarithmic = wide and _spread(figure) > 40
    if logarithmic:
        figure.update_xaxes(type="log", minor={"ticks": ""}, dtick="D2", tickformat="~r")
    else:
        figure.update_xaxes(rangemode="tozero")
    if solo and axis.key in ("tokens", "step"):
        _mark_resumes(figure, runs[0], axis, logarithmic)
    note = "nats per token" + ("; the faint line is every logged step" if smoothed and solo else "")
    note += "" if solo else "; lines are training loss, markers validation"
    if above:
        note += f"; {above} early point{'s lie' if above > 1 else ' lies'} above the chart"
    figure.update_xaxes(title_text=axis.title + (", log scale" if logarithmic else ""))
    title = "Loss by time" if axis.key == "elapsed_s" else "Loss by tokens"
    return Chart(key, "Loss by steps" if axis.key == "step" else title, note, figure, wide)


def hellaswag_chart(runs: Sequence[Run], axis: Axis) -> Chart | None:
    """acc_norm with 95% intervals, beside GPT-2's published score and chance."""
    figure, solo = blank(270), len(runs) == 1
    protocols: dict[str, None] = {}
    highest = HELLASWAG_CHANCE
    for i, run in enumerate(runs):
        records = [r for r in run.task("hellaswag") if number(r, axis.key) is not None]
        records = [r for r in records if number(r, "acc_norm") is not None]
        for protocol in dict.fromkeys(str(r.get("protocol") or "") for r in records):
            mine = [r for r in records if str(r.get("protocol") or "") == protocol]
            colour = PALETTE[(i if not solo else len(protocols)) % len(PALETTE)]
            dash = "dot" if protocol == "harness" else "solid"
            protocols[protocol] = None
            x, y = _points(mine, axis, "acc_norm")
            errors = [INTERVAL_95 * (number(r, "acc_norm_stderr") or 0) for r in mine]
            highest = max(highest, *(a + b for a, b in zip(y, errors, strict=True)))
            figure.add_scatter(
                x=x, y=y, mode="lines+markers", hovertemplate="%{y:.2%}",
                name=figure_text(f"{protocol or 'acc_norm'}" if solo else f"{run.name} {protocol}"),
                error_y={"type": "data", "array": errors, "thickness": 1.2, "width": 0},
                line={"color": colour, "width": 1.5, "dash": dash},
                marker={"size": 7, "color": colour, "line": {"width": 1.5, "color": SURFACE}},
            )  # fmt: skip
    if not protocols:
        return None
    figure.update_layout(showlegend=solo and len(protocols) > 1)
    _reference(figure, HELLASWAG_CHANCE, "chance 25%", left=True, below=True)
    sources: list[str] = []
    for protocol in protocols:
        score = published_hellaswag(protocol)
        if score:
            highest = max(highest, score.value)
            one = f"{score.model} {score.value:.2%}"
            label = f"{one}, {protocol}" if len(protocols) > 1 else one
            # The two protocols' scores may be so close that labels on one side would overlap.
            _reference(figure, score.value, label, left=not sources)
            sources.append(f"{score.model}, {protocol} protocol: {score.source}")
    figure.update_xaxes(title_text=axis.title, rangemode="tozero")
    figure.update_yaxes(tickformat=".0%" if highest > 0.29 else ".1%")
    note = "acc_norm, bars are 95% intervals"
    if "harness" in protocols and len(protocols) > 1:
        note += "; dotted: harness protocol"
    return Chart("hellaswag", "HellaSwag", "; ".join([note, *sources]), figure)


def curve_chart(
    runs: Sequence[Run],
    axis: Axis,
    key: str,
    title: str,
    note: str,
    number_format: str,
    y_axis: dict[str, str],
) -> Chart | None:
    """One metric of every run against `axis`; the y axis begins at 0, or is logarithmic for a
    gradient norm with spikes."""
    figure, solo = blank(230), len(runs) == 1
    for i, run in enumerate(runs):
        x, y = _points(run.metrics, axis, key)
        if not any(y):
            continue
        name = title.lower() if solo else figure_text(run.name)
        colour = PALETTE[i % len(PALETTE)]
        _curve(figure, x, y, name, colour, f"run{i}", number_format, solo, smoothing=key != "lr")
    if not figure.data:
        return None
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text=axis.title, rangemode="tozero")
    figure.update_yaxes(rangemode="tozero", **y_axis)
    values = [v for trace in figure.data for v in trace.y]
    if key == "grad_norm" and min(values) > 0 and max(values) > 8 * statistics.median(values):
        figure.update_yaxes(type="log", dtick=1)
    return Chart(key.replace("_", "-"), title, note, figure)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Exponential mean over about `window` points; over fewer near the start, where the loss falls
    too fast for a wide window."""
    mean, result = 0.0, []
    for i, value in enumerate(values):
        mean += 2 / (min(window, max(1.0, i / 16)) + 1) * (value - mean)
        result.append(mean)
    return result


def thin(
    x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS
) -> tuple[list[float], list[float]]:
    """About `most` points at most: the lowest and the highest of every bucket, and both ends."""
    if len(x) <= most:
        return list(x), list(y)
    size = 2 * len(x) / most
    keep = {0, len(x) - 1}
    for bucket in range(most // 2):
        inside = range(int(bucket * size), min(int((bucket + 1) * size), len(x)))
        keep |= {min(inside, key=y.__getitem__), max(inside, key=y.__getitem__)}
    return [x[i] for i in sorted(keep)], [y[i] for i in sorted(keep)]


def _curve(
    figure: go.Figure,
    x: list[float],
    y: list[float],
    name: str,
    colour: str,
    group: str,
    number_format: str,
    faint: bool,
    smoothing: bool = True,
) -> bool:
    """Add one curve; True if it was smoothed."""
    if not x:
        return False
    hover = f"%{{y:{number_format}}}"
    few, flat = len(x) <= FEW_POINTS, not smoothing
    if few or flat:
        style: dict[str, Any] = {"mode": "lines+markers" if few else "lines"}
        style["marker"] = {"size": 5}
        line_x, line_y = thin(x, y)
    else:
        if faint:
            faint_x, faint_y = thin(x, y)
            figure.add_scatter(
                x=faint_x, y=_short(faint_y), mode="lines", hoverinfo="skip", showlegend=False,
                legendgroup=group, opacity=0.28, line={"color": colour, "width": 1},
            )  # fmt: skip
        style = {"mode": "lines"}
        line_x, line_y = thin(x, smooth(y, max(3, min(len(y) // 40, 200))))
    figure.add_scatter(
        x=line_x, y=_short(line_y), name=name, legendgroup=group, hovertemplate=hover,
        line={"color": colour, "width": 2}, **style,
    )  # fmt: skip
    return not (few or flat)


def blank(height: int) -> go.Figure:
    axis = {
        "gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": "", "fixedrange": False,
        "automargin": True, "tickfont": {"size": 12, "color": MUTED}, "nticks": 6,
        "title": {"font": {"size": 12, "color": MUTED}, "standoff": 8},
    }  # fmt: skip
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 44, "r": 10, "t": 8, "b": 40},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "color": INK, "size": 12},
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": SURFACE, "bordercolor": GRID, "font": {"color": INK}},
            "legend": {
                "orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom",
                "font": {"color": MUTED}, "bgcolor": "rgba(0,0,0,0)",
            },
            "xaxis": {**axis, "showgrid": False, "showline": True},
            "yaxis": axis,
        }
    )  # fmt: skip


def _reference(
    figure: go.Figure, y: float, label: str, *, left: bool = False, below: bool = False
) -> None:
    """Draw a dashed line across the chart, with its label on it instead of in a legend."""
    figure.add_hline(
        y, layer="below", line={"color": FAINT, "width": 1.3, "dash": "dash"},
        annotation={"text": label, "font": {"size": 11.5, "color": MUTED}, "bgcolor": SURFACE},
        annotation_position=f"{'bottom' if below else 'top'} {'left' if left else 'right'}",
    )  # fmt: skip


def _mark_resumes(figure: go.Figure, run: Run, axis: Axis, logarithmic: bool) -> None:
    per_step = 1.0 if axis.key == "step" else number(run.plan, "tokens_per_step")
    steps = [number(e, "step") for e in run.events if e.get("event") == "resumed"]
    last = max((number(record, "step") or 0 for record in run.metrics), default=0)
    known = sorted({step for step in steps if step and step <= last})
    if per_step is None or len(known) > 40:
        return
    for step in known:
        x = step * per_step / axis.unit
        figure.add_shape(
            type="line", yref="paper", x0=x, x1=x, y0=0, y1=1, layer="below",
            line={"color": FAINT, "width": 1, "dash": "dot"},
        )  # fmt: skip
        if len(known) <= 4:
            figure.add_annotation(
                x=math.log10(x) if logarithmic else x,  # annotations need this, shapes do not
                yref="paper", y=0, yanchor="bottom", xanchor="left", text="resumed",
                showarrow=False, font={"size": 11, "color": MUTED},
            )  # fmt: skip


def _clip(figure: go.Figure, values: list[float], references: list[float]) -> int:
    """Fit the y axis to the losses in which the run spent its time, not to its first steps; returns
    the number of points above it."""
    usual = sorted(values)[int(0.96 * (len(values) - 1))] if len(values) > 40 else max(values)
    top = min(max([usual, *references]), max([*values, *references]))
    low = min([*values, *references])
    pad = 0.06 * (top - low) or 0.1
    figure.update_yaxes(range=[low - pad, top + 1.5 * pad])
    return sum(value > top + 1.5 * pad for value in values)


def _spread(figure: go.Figure) -> float:
    """The ratio of the largest to the smallest positive x."""
    xs = [x for trace in figure.data for x in trace.x if x > 0]
    return max(xs) / min(xs) if xs else 1.0


def _points(records: Sequence[Any], axis: Axis, y: str) -> tuple[list[float], list[float]]:
    xs, ys = series(records, axis.key, y)
    return _short([x / axis.unit for x in xs]), ys


def _short(values: Sequence[float]) -> list[float]:
    # Six digits: finer than a pixel, and the page stays small.
    return [float(f"{v:.6g}") for v in values]


def _largest(runs: Sequence[Run], key: str) -> float:
    found = [number(r, key) for run in runs for r in (*run.metrics, *run.evals)]
    return max((v for v in found if v is not None), default=0.0)
