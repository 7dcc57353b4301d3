"""Learning-rate schedules: bounds, continuity, golden points, and nanoGPT's formula."""

import math
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest

from outpace.config.schema import ScheduleConfig
from outpace.optim.schedules import SCHEDULES, multiplier


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 1), (100, 10), (1000, 0), (50, 60)])
def test_bounds_and_continuity(schedule, total, warmup):
    config = ScheduleConfig(schedule=schedule)
    values = [multiplier(config, s, total, warmup) for s in range(total)]
    assert all(0 < v <= 1 for v in values)
    largest = max(1 / (warmup + 1), math.pi / 2 / max(1, total - warmup), 1 / max(1, total * 0.2))
    assert all(abs(a - b) <= largest + 1e-9 for a, b in pairwise(values))


def test_the_flag_takes_every_schedule_and_no_other():
    choices = get_args(get_type_hints(ScheduleConfig)["schedule"])
    assert list(choices) == list(SCHEDULES)


def test_cosine_is_nanogpts():
    """karpathy/nanoGPT, train.py, get_lr, with the peak at 1."""

    def nanogpt(it: int, warmup: int, decay: int, least: float) -> float:
        if it < warmup:
            return (it + 1) / (warmup + 1)
        ratio = (it - warmup) / (decay - warmup)
        return least + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (1 - least)

    for it in range(300):
        got = multiplier(ScheduleConfig(), it, 300, 20)
        assert got == pytest.approx(nanogpt(it, 20, 300, 0.1))


def test_golden_points():
    at = lambda step, schedule: multiplier(ScheduleConfig(schedule=schedule), step, 110, 10)  # noqa: E731
    assert at(0, "wsd") == pytest.approx(1 / 11)
    assert at(10, "cosine") == 1.0 and at(60, "cosine") == pytest.approx(0.55)
    assert at(87, "wsd") == 1.0 and at(88, "wsd") == 1.0 and at(99, "wsd") == pytest.approx(0.55)
    assert at(109, "constant") == 1.0
    assert at(110, "cosine") == pytest.approx(0.1) and at(110, "wsd") == pytest.approx(0.1)
