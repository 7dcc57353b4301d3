"""What a person watches: a live line on a terminal, now and then a plain line elsewhere."""

import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from outpace.core.console import err
from outpace.core.log import say
from outpace.core.units import duration

LINE_EVERY_S = 10.0
"""Seconds between plain lines when nobody watches a terminal."""


class Display:
    """Shows the newest metrics. Use as a context manager around the loop."""

    def __init__(self, first: int, total: int, enabled: bool) -> None:
        self.total, self.enabled = total, enabled
        self._last_line = 0.0
        self._progress: Progress | None = None
        if enabled and err.is_terminal:
            columns = (
                TextColumn("[bold]step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
            )
            self._progress = Progress(*columns, console=err, transient=True)
            self._task = self._progress.add_task("", total=total, completed=first, text="")

    def __enter__(self) -> "Display":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, record: dict[str, Any], *, eta_s: float | None) -> None:
        """Show one record of metrics.jsonl."""
        text = metrics_text(record, eta_s)
        if self._progress:
            self._progress.update(self._task, completed=record["step"], text=text)
        elif self.enabled:
            now = time.monotonic()
            if now - self._last_line >= LINE_EVERY_S or record["step"] in (1, self.total):
                self._last_line = now
                say(f"step {record['step']}/{self.total}  {text}")

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.enabled:
            (self._progress.console.print(text, markup=False) if self._progress else say(text))


def metrics_text(record: dict[str, Any], eta_s: float | None) -> str:
    """Loss, rate, gradient norm, speed, utilisation, memory and time left, with their units."""
    rate, mfu = record["tokens_per_second"], record["mfu"]
    parts = [
        f"loss {record['loss']:.4f}",
        f"lr {record['lr']:.2e}",
        f"grad norm {record['grad_norm']:.2f}",
        f"{rate:,.0f} tok/s" if rate else "- tok/s",
        f"MFU {mfu:.1%}" if mfu else "MFU n/a",
        f"{record['memory_gib']:.1f} GiB",
    ]
    if eta_s is not None:
        parts.append(f"ETA {duration(eta_s)}")
    return "  ".join(parts)
