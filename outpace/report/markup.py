"""Escaping of text from the records, and values as people write them."""

import html
import json
import re
import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any

from outpace.core import units
from outpace.core.files import JsonObject

NONE = "\N{EN DASH}"
"""Shown if the records lack a value."""

_JOINERS = "\u200c\u200d"  # parts of ordinary words and emoji in many scripts
_NAMES = {"seed", "pid", "port", "format"}  # integers that are names, not amounts


def plain(value: object) -> str:
    """Text in which control characters, bidi overrides and lone surrogates are shown as escapes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" or c in _JOINERS or unicodedata.category(c) == "Zs"
        else repr(c)[1:-1]
        for c in str(value)
    )  # fmt: skip


def escape(value: object) -> str:
    """`value` as HTML text or attribute. All text from records passes through here."""
    return html.escape(plain(value))


def figure_text(value: object) -> str:
    """`value` as text in a plotly figure, which reads <, > and & as HTML but no other entity."""
    return html.escape(plain(value), quote=False)


def embed_json(value: Any) -> str:
    """JSON for a <script> element, which no text in it can close."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def shown(key: str, value: object) -> str:
    """A value of a plan, a machine or a dataset as plain text, with the unit that its key
    implies."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(key, value)
    if key == "command" and isinstance(value, list):
        return shlex.join(map(str, value))
    if isinstance(value, (list, tuple)):
        return ", ".join(shown("", v) for v in value) or NONE
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(str(k), v)}" for k, v in value.items()) or NONE
    if key.endswith(("fingerprint", "commit", "sha256")) and re.fullmatch(
        "[0-9a-f]{20,}", str(value)
    ):
        return f"{str(value)[:16]}…"
    return str(value)


def _number(key: str, value: int | float) -> str:
    if value != value or abs(value) > 1e300:
        return str(value)[:24]
    if key.endswith("_bytes"):
        return units.gib(value)
    if "flops" in key:
        return f"{units.count(value)}FLOP{'' if 'token' in key else '/s'}"
    if key in _NAMES:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.5g}"


def whole(value: float | None) -> str:
    """12345.0 -> '12,345'."""
    return NONE if value is None else f"{value:,.0f}"


def decimals(value: float | None, places: int) -> str:
    """3.14159, 2 -> '3.14'."""
    return NONE if value is None else f"{value:.{places}f}"


def clock(iso_time: object) -> str:
    """'2026-05-04T09:51:00+00:00' -> '2026-05-04 09:51:00 UTC'."""
    return str(iso_time).replace("T", " ", 1).replace("+00:00", " UTC")


def percent(value: float | None, places: int = 1) -> str:
    """0.295 -> '29.5%'."""
    return NONE if value is None else f"{100 * value:.{places}f}%"


def facts(record: JsonObject, leave_out: Sequence[str] = ()) -> str:
    """A record as a list of names and values."""
    rows = [
        f"<div><dt>{escape(k)}</dt><dd>{escape(shown(k, v))}</dd></div>"
        for k, v in record.items()
        if k not in leave_out
    ]
    return f'<dl class="facts">{"".join(rows)}</dl>' if rows else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are already HTML; the first cell of each row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{c}</td>" for c in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def section(title: str, body: str) -> str:
    """A titled part of the page; empty if the body is."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""
