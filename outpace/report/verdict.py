"""The run's comparison with another model, from its verdict.json, as a piece of HTML. All text from
the record passes `markup.escape`.
"""

from outpace.core.files import JsonObject
from outpace.report.load import Run, items, number, part
from outpace.report.markup import NONE, clock, escape, percent, table, whole

HEAD = ["protocol", "model", "baseline", "difference", "95% interval", "questions", "p", "answer"]


def body(run: Run) -> str:
    """The answer in words, then one row per protocol; empty if there is no verdict."""
    record = run.verdict
    if not record.get("answer"):
        return ""
    baseline = part(record, "baseline")
    kind = escape(baseline.get("kind") or "unknown")
    about = f"The baseline is {escape(baseline.get('name') or 'unknown')}, known by its {kind}"
    if sources := items(baseline, "sources"):
        about = f"The baseline's scores are published: {escape('; '.join(map(str, sources)))}"
    rows = [_row(c) for c in items(record, "comparisons") if isinstance(c, dict)]
    dirty = part(record, "contamination")
    rows += [
        _row(c, f"without {whole(number(dirty, 'questions'))} contaminated")
        for c in items(record, "clean")
        if isinstance(c, dict)
    ]
    return (
        f'<p class="lead"><b>{escape(record["answer"])}</b>: '
        f"{escape(record.get('sentence') or '')}</p>"
        f"{table(HEAD, rows, 'verdict')}"
        f'<p class="lead">{about}. Asked {escape(clock(record.get("time") or NONE))}. Differences '
        "in percentage points; p is McNemar's exact test, where both models answered each "
        "question.</p>"
    )


def _row(c: JsonObject, which: str = "") -> list[str]:
    name = " ".join(str(c.get(key) or "") for key in ("task", "metric", "protocol"))
    low, high = number(c, "low"), number(c, "high")
    compared = number(c, "difference") is not None
    interval = f"{_points(low)} to {_points(high)}" if compared else NONE
    p = number(part(c, "paired"), "mcnemar_p")
    return [
        escape(f"{name} {which}".strip()),
        percent(number(c, "model"), 2),
        percent(number(c, "baseline"), 2),
        _points(number(c, "difference")),
        interval,
        whole(number(c, "questions")),
        NONE if p is None else f"{p:.2g}",
        escape(c.get("answer") or NONE),
    ]


def _points(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:+.2f}"
