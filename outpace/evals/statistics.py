"""The difference of two accuracies and its uncertainty: an exact test, intervals in closed form,
and a bootstrap. The closed forms take numbers or arrays.

Sources: Newcombe 1998, "Interval estimation for the difference between independent proportions"
(Statistics in Medicine 17:873); Bonett and Price 2012, "Adjusted Wald confidence interval for a
difference of binomial proportions based on paired data" (J. Educ. Behav. Stat. 37:479); McNemar
1947 (Psychometrika 12:153); Efron and Tibshirani 1993, chapter 13; Miller 2024, "Adding error bars
to evals" (arXiv:2411.00640), on questions that come from one source.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
RESAMPLES = 100_000


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval; arrays of them where arrays were given."""

    low: Any
    high: Any


def wilson(right: npt.ArrayLike, n: npt.ArrayLike) -> Interval:
    """Interval of one share, `right` of `n` (Wilson 1927, the score interval)."""
    k, n = np.asarray(right, float), np.asarray(n, float)
    middle = (k + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * np.sqrt(k * (n - k) / n + Z**2 / 4)
    return Interval(middle - half, middle + half)


def unpaired(
    right_a: npt.ArrayLike, n_a: npt.ArrayLike, right_b: npt.ArrayLike, n_b: npt.ArrayLike
) -> Interval:
    """Interval of the difference a - b of two independent shares (Newcombe 1998, method 10). For
    two models that answered the same questions it is wider than necessary, because they agree more
    often than by chance: use `paired`."""
    a, b = wilson(right_a, n_a), wilson(right_b, n_b)
    p_a = np.asarray(right_a, float) / np.asarray(n_a)
    p_b = np.asarray(right_b, float) / np.asarray(n_b)
    difference = p_a - p_b
    below = np.sqrt((p_a - a.low) ** 2 + (b.high - p_b) ** 2)
    above = np.sqrt((a.high - p_a) ** 2 + (p_b - b.low) ** 2)
    return Interval(difference - below, difference + above)


def paired(only_a: npt.ArrayLike, only_b: npt.ArrayLike, n: npt.ArrayLike) -> Interval:
    """Interval of the difference a - b over the same `n` questions, of which only a had `only_a`
    right and only b `only_b` (Bonett and Price 2012)."""
    n = np.asarray(n, float) + 2
    p_a, p_b = (np.asarray(only_a, float) + 1) / n, (np.asarray(only_b, float) + 1) / n
    half = Z * np.sqrt((p_a + p_b - (p_a - p_b) ** 2) / n)
    return Interval(np.maximum(p_a - p_b - half, -1.0), np.minimum(p_a - p_b + half, 1.0))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of "neither is better": each question that only one had right is as
    likely to be a's as b's. The binomial tail is summed in integers, without rounding."""
    n, least = only_a + only_b, min(only_a, only_b)
    term = total = 1
    for i in range(least):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / (1 << n))


def bootstrap(
    differences: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of `differences`, one per question: 1 if only a was right, -1
    if only b was, else 0. With `sources`, numbered from 0, whole sources are resampled, because
    questions about one video or article are not independent.

    Sources of equal size and sum are interchangeable, so a resample is one draw from a multinomial,
    of how many of each kind it has: the same distribution as drawing one by one, in milliseconds.
    """
    if sources is None:
        sources = np.arange(len(differences))
    sizes = np.bincount(sources)
    sums = np.bincount(sources, weights=differences).astype(np.int64)
    most = int(sizes.max())
    there = sums[sizes > 0] * (most + 1) + sizes[sizes > 0]
    kinds, count = np.unique(there, return_counts=True)  # (K,): sum and size in one number
    total, size = kinds // (most + 1), kinds % (most + 1)
    chances = count / count.sum()
    drawn = np.random.default_rng(seed).multinomial(count.sum(), chances, resamples)  # (R, K)
    means = drawn @ total / (drawn @ size)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
