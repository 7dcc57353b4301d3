"""The guard's books: what is found after what, what is kept, and when a run is called diverged."""

import json
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.train.guard import WARM, WINDOW, Diverged, Guard, Values


def guard(most_skipped: int = 5, threshold: float = 20.0, skip_spikes: bool = False) -> Guard:
    return Guard(most_skipped=most_skipped, threshold=threshold, skip_spikes=skip_spikes)


def feed(books: Guard, losses: list[float], first: int = 1) -> list[str | None]:
    """Enter steps with these losses, gradient norm 1; the kind of each incident."""
    found = [
        books.absorb(Values(first + i, loss, 1.0, skipped=not math.isfinite(loss)))
        for i, loss in enumerate(losses)
    ]
    return [f and f.kind for f in found]


def noise(count: int) -> list[float]:
    """Around 3, within 0.1."""
    return [3.0 + 0.1 * math.sin(1.7 * i) for i in range(count)]


finite = st.floats(min_value=1e-3, max_value=1e3)
anything = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf]))


def test_nothing_is_a_spike_before_the_window_is_warm():
    assert feed(guard(), [*noise(WARM - 1), 1e9]) == [None] * WARM


def test_a_spike_is_found_and_does_not_enter_the_window():
    books = guard()
    feed(books, noise(60))
    before = books.limits()
    assert feed(books, [60.0], 61) == ["spike"]
    assert books.limits() == before


def test_a_spike_of_the_gradient_norm_alone_is_found():
    books = guard()
    feed(books, noise(60))
    found = books.absorb(Values(61, 3.0, 50.0, skipped=False))
    assert found is not None and found.kind == "spike" and found.norm_limit < 50


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_detection_goes_on_after_what_is_not_finite(bad):
    """A z-score whose window has taken in a NaN never finds anything again."""
    books = guard()
    feed(books, noise(60))
    assert feed(books, [bad, 3.0, 60.0], 61) == ["not finite", None, "spike"]


def test_a_shift_of_the_level_becomes_the_new_normal():
    books = guard()
    feed(books, noise(WINDOW))
    shifted = [30 + value for value in noise(WARM + 40)]
    found = feed(books, shifted, WINDOW + 1)
    assert found[: WARM - 1] == ["spike"] * (WARM - 1)
    assert found[WARM - 1 :] == [None] * 41
    assert feed(books, [300.0], 1000) == ["spike"], "and there spikes are found again"


def test_a_run_is_diverged_after_so_many_in_a_row_and_not_before():
    books = guard(most_skipped=3)
    feed(books, [3.0, math.nan, math.nan, 3.0, math.nan, math.nan])
    with pytest.raises(Diverged) as diverged:
        feed(books, [math.nan], 7)
    assert (diverged.value.first, diverged.value.last) == (5, 7)
    books.forget_streak()
    assert feed(books, [math.nan, math.nan], 8) == ["not finite", "not finite"]


def test_spikes_are_skipped_only_where_that_was_asked_for():
    for skip_spikes in (False, True):
        books = guard(skip_spikes=skip_spikes)
        assert books.skip_limits() == (math.inf, math.inf)
        feed(books, noise(60))
        assert (books.skip_limits() == books.limits()) is skip_spikes
        assert books.limits()[0] < 60


def test_a_threshold_of_zero_finds_no_spikes():
    books = guard(threshold=0)
    assert feed(books, [*noise(60), 1e30]) == [None] * 61


@given(st.lists(finite, min_size=WARM, max_size=2 * WINDOW))
@settings(deadline=None)
def test_a_limit_is_never_below_the_median_of_the_window(losses):
    books = guard()
    taken = [v for v, found in zip(losses, feed(books, losses), strict=True) if found is None]
    if books.limits()[0] < math.inf and len(losses) < 2 * WARM:  # too few to start anew
        assert books.limits()[0] >= statistics.median(taken[-WINDOW:])


@given(st.lists(finite, min_size=WARM, max_size=WARM + 30), st.floats(0, 1e6))
@settings(deadline=None)
def test_limits_follow_the_formula(losses, threshold):
    """Median plus threshold x max(1.4826 MAD, 1 % of the median), of the last values that were no
    spikes; with a threshold of 0 there is no limit."""
    books = guard(threshold=threshold)
    taken = [v for v, found in zip(losses, feed(books, losses), strict=True) if found is None]
    median = statistics.median(taken)
    mad = statistics.median(abs(v - median) for v in taken)
    expected = median + threshold * max(1.4826 * mad, 0.01 * median) if threshold else math.inf
    if len(losses) < 2 * WARM:
        assert books.limits()[0] == pytest.approx(expected)


@given(
    st.lists(st.tuples(anything, anything, st.booleans()), max_size=90),
    st.lists(st.tuples(anything, anything, st.booleans()), max_size=60),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_checkpoint_holds_all_of_it(before, after, pending):
    """Through JSON and back, with or without a step still to be entered: the same decisions."""

    def enter(books: Guard, steps, first):
        decisions = []
        for i, (loss, norm, skipped) in enumerate(steps):
            try:
                found = books.absorb(Values(first + i, loss, norm, skipped))
            except Diverged as diverged:
                decisions.append((diverged.first, diverged.last))
                books.forget_streak()
            else:
                decisions.append((found and found.kind, *books.limits()))
        return decisions

    straight = guard(most_skipped=4)
    enter(straight, before, 1)
    waiting = Values(len(before) + 1, math.nan, 2.0, skipped=True) if pending else None
    state = json.loads(json.dumps(straight.state(waiting), allow_nan=False))
    resumed = guard(most_skipped=4)
    resumed.load(state)
    assert (resumed.pending is None) is (waiting is None)
    if waiting is not None:
        restored = resumed.pending
        assert restored is not None
        assert (restored.step, restored.skipped, restored.grad_norm) == (waiting.step, True, 2.0)
        assert math.isnan(restored.loss)
    assert enter(resumed, after, 500) == enter(straight, after, 500)
