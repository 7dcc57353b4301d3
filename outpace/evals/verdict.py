"""Is one model better than another, or could the difference be chance?

There are three answers. `beats`: the 95% interval of the difference lies above zero. `does not`: it
lies below. `cannot tell`: it contains zero. If both models answered the same questions, the
closed-form interval, the bootstrap and McNemar's exact test must agree.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from outpace.core.errors import DataError
from outpace.core.published import PublishedScore
from outpace.evals import statistics
from outpace.evals.answers import Answers

BEATS, CANNOT_TELL, DOES_NOT = "beats", "cannot tell", "does not"


@dataclass(frozen=True)
class Paired:
    """What is known if both models answered the same questions."""

    only_model: int
    """Questions that only the model had right."""
    only_baseline: int
    both: int
    neither: int
    mcnemar_p: float
    """Exact two-sided p-value: the probability of so large a difference if neither is better."""
    bootstrap_low: float
    bootstrap_high: float
    sources: int
    """Videos and articles that the bootstrap resampled, each with all its questions."""


@dataclass(frozen=True)
class Comparison:
    """Two scores of one metric under one protocol. Shares from 0 to 1."""

    task: str
    protocol: str
    metric: str
    questions: int
    """That the model answered; if `paired` is set, so did the baseline."""
    baseline_questions: int
    model: float
    baseline: float
    difference: float
    low: float
    high: float
    """Ends of the 95% interval of the difference."""
    answer: str
    paired: Paired | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """The comparison in words."""
        how = f"{self.questions:,} questions" + (
            f", McNemar p = {self.paired.mcnemar_p:.2g}"
            if self.paired
            else f" against {self.baseline_questions:,}, unpaired"
        )
        return (
            f"{self.task} {self.metric}, {self.protocol} protocol: {self.model:.2%} against "
            f"{self.baseline:.2%}, {_points(self.difference)} points, 95% interval "
            f"{_points(self.low)} to {_points(self.high)} ({how}): {self.answer}"
        )


def compare(model: Answers, baseline: Answers, metric: str) -> Comparison:
    """Compare both models' answers to the questions that both answered. DataError if there are
    none, or if a label differs. Both must have the metric, which `tools.verdict.check` ensures."""
    a, b = _same_questions(model, baseline)
    right_a, right_b = a.right[metric], b.right[metric]
    n, both = len(a), int((right_a & right_b).sum())
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    interval = statistics.paired(only_a, only_b, n)
    _, sources = np.unique(a.sources, return_inverse=True)
    difference = right_a.astype(np.int64) - right_b.astype(np.int64)
    again = statistics.bootstrap(difference, sources.reshape(-1))
    p = statistics.mcnemar(only_a, only_b)
    low, high = float(interval.low), float(interval.high)
    return Comparison(
        a.task,
        a.protocol,
        metric,
        questions=n,
        baseline_questions=n,
        model=float(right_a.mean()),
        baseline=float(right_b.mean()),
        difference=(only_a - only_b) / n,
        low=low,
        high=high,
        answer=_answer(min(low, again.low), max(high, again.high)) if p < 0.05 else CANNOT_TELL,
        paired=Paired(
            only_model=only_a,
            only_baseline=only_b,
            both=both,
            neither=n - both - only_a - only_b,
            mcnemar_p=p,
            bootstrap_low=again.low,
            bootstrap_high=again.high,
            sources=len(set(a.sources)),
        ),
    )


def compare_published(model: Answers, score: PublishedScore) -> Comparison:
    """Compare a model's answers with a published accuracy over `score.questions` questions."""
    right = model.right[score.metric]
    n, k = len(right), int(right.sum())
    interval = statistics.unpaired(k, n, score.value * score.questions, score.questions)
    low, high = float(interval.low), float(interval.high)
    return Comparison(
        model.task,
        model.protocol,
        score.metric,
        questions=n,
        baseline_questions=score.questions,
        model=k / n,
        baseline=score.value,
        difference=k / n - score.value,
        low=low,
        high=high,
        answer=_answer(low, high),
    )


def overall(comparisons: Sequence[Comparison]) -> str:
    """The answer that all protocols give; if they differ, `cannot tell`."""
    answers = {c.answer for c in comparisons}
    return answers.pop() if len(answers) == 1 else CANNOT_TELL


def _same_questions(a: Answers, b: Answers) -> tuple[Answers, Answers]:
    place = {name: i for i, name in enumerate(b.names)}
    here = [i for i, name in enumerate(a.names) if name in place]
    if not here:
        raise DataError(
            "NO-PAIRS",
            f"the two models answered no question of {a.task}, {a.protocol} protocol, in common",
            do="score both on the same file with the same --limit",
        )
    a = a.at(here)
    b = b.at([place[name] for name in a.names])
    for name, label, other in zip(a.names, a.labels, b.labels, strict=True):
        if label != other:
            raise DataError(
                "LABELS",
                f"question {name!r} has the answer {label} on one side and {other} on the other",
                do="score both on the same file",
            )
    return a, b


def _answer(low: float, high: float) -> str:
    return BEATS if low > 0 else DOES_NOT if high < 0 else CANNOT_TELL


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"
