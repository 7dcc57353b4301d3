"""Intervals and tests against published examples, enumeration, and simulations of known truth."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from outpace.evals.statistics import Z, bootstrap, mcnemar, paired, unpaired, wilson

SIMULATIONS = 40_000
LEAST, MOST = 0.94, 0.96


def coverage(interval, truth: float) -> float:
    return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
    ],
)
def test_unpaired_gives_newcombes_own_examples(counts, low, high):
    """Newcombe 1998, table II, method 10."""
    interval = unpaired(*counts)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "n"), [(0, 12), (3, 10), (2967, 10_042), (10, 10)])
def test_the_ends_of_wilsons_interval_are_just_not_rejected(right, n):
    interval = wilson(right, n)
    for end in (interval.low, interval.high):
        assert (right / n - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / n, abs=1e-15)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (0, 6), (3, 4), (2, 9), (5, 5), (7, 4)])
def test_mcnemar_counts_all_outcomes_that_are_as_uneven(counts):
    """By writing down each of the 2^n ways in which n coins fall."""
    n, least = sum(counts), min(counts)
    falls = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    uneven = sum(min(heads, n - heads) <= least for heads in falls)
    assert mcnemar(*counts) == float(Fraction(uneven, 2**n))
    assert mcnemar(*counts) == mcnemar(*reversed(counts))


def test_mcnemar_of_thousands_is_near_the_normal_approximation():
    """With Edwards's correction, which is good to a few per mille there."""
    for a, b in ((1000, 1100), (3000, 3021), (520, 640)):
        z = (abs(a - b) - 1) / math.sqrt(a + b)
        assert mcnemar(a, b) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
    assert mcnemar(0, 5000) == 0.0


def test_paired_tends_to_walds_interval():
    """Of the mean of +1, 0 and -1; far from it where questions are few, as it should be."""
    b, c, n = 1200, 1100, 10_042
    values = np.repeat([1.0, -1.0, 0.0], [b, c, n - b - c])
    half = Z * values.std() / math.sqrt(n)
    interval = paired(b, c, n)
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=1e-5
    )
    none = paired(0, 0, 10)
    assert none.low < -0.1 and none.high > 0.1


@pytest.mark.parametrize("n", [1000, 3000, 10_042])
@pytest.mark.parametrize(("a", "b"), [(0.25, 0.25), (0.30, 0.2955), (0.33, 0.3114), (0.40, 0.2955)])
def test_the_unpaired_interval_holds_the_truth_19_times_in_20(n, a, b):
    rng = np.random.default_rng(n)
    right_a, right_b = rng.binomial(n, a, SIMULATIONS), rng.binomial(10_042, b, SIMULATIONS)
    assert LEAST < coverage(unpaired(right_a, n, right_b, 10_042), a - b) < MOST
    assert LEAST < coverage(wilson(right_a, n), a) < MOST


@pytest.mark.parametrize("n", [1000, 3000, 10_042])
@pytest.mark.parametrize(("a", "b"), [(0.01, 0.01), (0.05, 0.04), (0.10, 0.09), (0.20, 0.16)])
def test_the_paired_interval_holds_the_truth_19_times_in_20(n, a, b):
    """`a` and `b`: the chance that one model alone is right."""
    drawn = np.random.default_rng(n).multinomial(n, [a, b, 1 - a - b], SIMULATIONS)
    assert LEAST < coverage(paired(drawn[:, 0], drawn[:, 1], n), a - b) < MOST


def simulated(rng: np.random.Generator, sources: np.ndarray, tie: float) -> np.ndarray:
    """Differences with the mean 0.01, of which a share `tie` is one draw for the whole source."""
    p = [0.10, 0.09, 0.81]
    own = rng.choice([1, -1, 0], size=len(sources), p=p)
    shared = rng.choice([1, -1, 0], size=sources.max() + 1, p=p)[sources]
    return np.where(rng.random(len(sources)) < tie, shared, own)


@pytest.mark.parametrize(
    ("trials", "least", "most"),
    [(500, 0.93, 0.97), pytest.param(6000, LEAST, MOST, marks=pytest.mark.exhaustive)],
)
def test_the_bootstrap_over_sources_holds_the_truth_where_one_over_questions_does_not(
    trials, least, most
):
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(1000), 3)
    hits = naive = 0
    for trial in range(trials):
        drawn = simulated(rng, sources, tie=0.9)
        interval = bootstrap(drawn, sources, resamples=1000)
        hits += interval.low <= 0.01 <= interval.high
        if trial < 200:
            interval = bootstrap(drawn, resamples=1000)
            naive += interval.low <= 0.01 <= interval.high
    print(f"over sources {hits / trials:.4f}, over questions {naive / 200:.3f}")
    assert least < hits / trials < most
    assert naive / 200 < 0.90


def test_the_bootstrap_is_that_of_questions_drawn_one_by_one():
    rng = np.random.default_rng(1)
    sources = np.repeat(np.arange(200), rng.integers(1, 4, 200))
    drawn = simulated(rng, sources, tie=0.5)
    of_source = [drawn[sources == s] for s in range(200)]
    means = [
        np.concatenate([of_source[s] for s in rng.integers(0, 200, 200)]).mean()
        for _ in range(5000)
    ]
    interval = bootstrap(drawn, sources)
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=2e-3
    )


def test_a_question_asked_twice_is_no_evidence():
    rng = np.random.default_rng(2)
    once = rng.choice([1, -1, 0], size=800, p=[0.1, 0.05, 0.85])
    twice, sources = np.repeat(once, 2), np.repeat(np.arange(800), 2)
    assert bootstrap(twice, sources) == bootstrap(once)
    interval, naive = bootstrap(once), bootstrap(twice)
    ratio = (interval.high - interval.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.05)
