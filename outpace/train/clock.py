"""How much time goes into training, and how fast its steps are."""

import contextlib
import math
import time
from collections.abc import Iterator

from outpace.train.progress import Progress


class Clock:
    """Time spent in steps, without evaluation and saving. The first step, which compiles, counts as
    training time but not for the speed."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._mark = time.perf_counter()
        self._steps_at_mark = progress.step
        self._first = True
        self._rate: float | None = None
        self._spent = 0.0

    def settle(self) -> None:
        """Count the time until now as training."""
        now = time.perf_counter()
        self._spent += now - self._mark
        self.progress.elapsed_s += now - self._mark
        self._mark = now

    def steps_per_second(self) -> float | None:
        """Steps a second since the last call; None after the first step of a process."""
        self.settle()
        steps = self.progress.step - self._steps_at_mark
        rate = None if self._first or not steps else steps / self._spent
        self._steps_at_mark, self._spent, self._first = self.progress.step, 0.0, False
        if rate:
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        return rate

    def eta(self, steps: int) -> float | None:
        return None if not self._rate or math.isinf(self._rate) else steps / self._rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        self.settle()
        try:
            yield
        finally:
            self._mark = time.perf_counter()
