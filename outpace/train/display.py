"""What a person watches: a live line on a terminal, elsewhere a plain line now and then."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from outpace.core.console import LIVE, err
from outpace.core.log import say
from outpace.core.units import duration

LINE_EVERY_S = 10.0
"""Seconds between plain lines where there is no terminal, and after which a slow step shows its
progress."""
BAR = 24
WHOLE_LINE = 132
"""Terminal width from which there is room for the bar."""
LESS_WANTED = ("GiB", "grad norm", "lr", "MFU")
"""What is dropped from a line that is too long, the least important first."""


class Display:
    """Shows the newest metrics. Use as a context manager around the loop."""

    def __init__(self, first: int, total: int, enabled: bool) -> None:
        self.total, self.enabled = total, enabled
        self._last_line = self._step_began = self._second_began = 0.0
        self._plain = enabled and not (LIVE and sys.stdout.isatty())  # a log is to have it all
        self._progress: Progress | None = None
        if enabled and LIVE:
            whole = Column(no_wrap=True)
            columns = [
                TextColumn("[bold]step {task.completed}/{task.total}", table_column=whole),
                *([BarColumn(bar_width=BAR)] if err.width >= WHOLE_LINE else []),
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
            ]
            self._progress = Progress(
                *columns, console=err, transient=True, redirect_stdout=not self._plain
            )
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
        parts = metrics_parts(record, eta_s)
        text = "  ".join(parts)
        if self._progress:
            self._progress.update(self._task, completed=record["step"], text=self._fitted(parts))
        if self._plain:
            now = time.monotonic()
            if now - self._last_line >= LINE_EVERY_S or record["step"] in (1, self.total):
                self._last_line = now
                say(f"step {record['step']}/{self.total}  {text}")

    def micro_step(self, step: int, of: int, done: int) -> None:
        """`done` of `of` micro-steps are queued. Shown only if a step takes long, as with a large
        model on a CPU."""
        now = time.monotonic()
        if done == 0:
            self._step_began = now
        if done == 1:
            self._second_began = now  # the first may have compiled
        last = max(self._step_began, self._last_line)
        if not self.enabled or now - last < LINE_EVERY_S:
            return
        self._last_line = now
        text = f"micro-step {done}/{of}, {duration(now - self._step_began)} so far"
        if done > 1:
            each_s = (now - self._second_began) / (done - 1)
            text += f"  ETA {duration(each_s * (of - done + of * (self.total - step)))}"
        if self._progress:
            self._progress.update(self._task, text=text)
        else:
            say(f"step {step}/{self.total}  {text}")

    def transient(self, text: str) -> None:
        """The progress of an evaluation: shown in the live line, elsewhere now and then."""
        if self._progress:
            self._progress.update(self._task, text=text)
        elif self.enabled and time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            say(text)

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._plain:
            say(text)
        elif self._progress:
            self._progress.console.print(text, markup=False)

    def _fitted(self, parts: list[str]) -> str:
        """As many parts as the terminal has room for."""
        step = f"step {self.total}/{self.total} "
        room = err.width - len(step) - (BAR + 1 if err.width >= WHOLE_LINE else 0)
        for word in LESS_WANTED:
            if len("  ".join(parts)) <= room:
                break
            parts = [part for part in parts if word not in part]
        return "  ".join(parts)


def metrics_parts(record: dict[str, Any], eta_s: float | None) -> list[str]:
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
    return parts
