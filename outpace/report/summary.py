"""The headline numbers of a run, from its records."""

import statistics
from dataclasses import dataclass

from outpace.core.files import JsonObject
from outpace.core.published import PublishedScore, gpt2_published
from outpace.report.load import Run, number

INTERVAL_95 = 1.96
"""Standard errors on each side of a 95% interval of a normal distribution."""


@dataclass(frozen=True)
class Score:
    """One HellaSwag result, and the published score under the same protocol."""

    value: float
    stderr: float | None
    protocol: str
    questions: float | None
    published: PublishedScore | None

    @property
    def verdict(self) -> str:
        """How far above or below the published score it is; '' if there is none."""
        if self.published is None:
            return ""
        points = (self.value - self.published.value) * 100
        side = f"this run is {abs(points):.1f} points {'above' if points >= 0 else 'below'}"
        inside = self.stderr and abs(points) <= 100 * INTERVAL_95 * self.stderr
        return side + (", inside its own 95% interval" if inside else "")


@dataclass(frozen=True)
class Summary:
    """The headline numbers; None if the records lack them."""

    state: str
    steps: float | None
    max_steps: float | None
    tokens: float | None
    seconds: float | None
    tokens_per_second: float | None
    mfu: float | None
    peak_known: bool
    memory_gib: float | None
    train_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    val_tokens: float | None
    """Tokens that the last validation loss is the mean over."""
    val_perplexity: float | None
    val_bits_per_byte: float | None
    unigram_entropy: float | None
    hellaswag: dict[str, Score]
    """The last score under each protocol."""


def summarise(run: Run) -> Summary:
    """Speeds are medians over the whole run; most other numbers are the latest."""
    validations = run.task("validation")
    last = validations[-1] if validations else {}
    losses = _all(validations, "loss")
    steps = _all(run.metrics, "step") + _all([run.status], "last_step") + _all(run.evals, "step")
    tokens = _all(run.metrics, "tokens") + _all(run.evals, "tokens")
    seconds = _all(run.metrics, "elapsed_s") + _all(run.evals, "elapsed_s")
    memory = _all(run.metrics, "memory_gib")
    mfu = _median(_all(run.metrics, "mfu"))
    return Summary(
        state=str(run.status.get("state") or "unknown"),
        steps=max(steps, default=None),
        max_steps=number(run.plan, "max_steps"),
        tokens=max(tokens, default=None),
        seconds=max(seconds, default=None),
        tokens_per_second=_median(_all(run.metrics, "tokens_per_second")),
        mfu=mfu,
        peak_known=mfu is not None or number(run.machine, "peak_flops") is not None,
        memory_gib=max(memory, default=None),
        train_loss=_last(_all(run.metrics, "loss")),
        val_loss=_last(losses),
        best_val_loss=min(losses, default=None),
        val_tokens=number(last, "tokens_scored"),
        val_perplexity=number(last, "perplexity"),
        val_bits_per_byte=number(last, "bits_per_byte"),
        unigram_entropy=number(run.dataset, "unigram_entropy"),
        hellaswag=_hellaswag(run),
    )


def published_hellaswag(protocol: str) -> PublishedScore | None:
    """GPT-2's acc_norm under `protocol`; None if there is no published one."""
    return gpt2_published("hellaswag", protocol, "acc_norm")


def _hellaswag(run: Run) -> dict[str, Score]:
    scores = {}
    for record in run.task("hellaswag"):
        value = number(record, "acc_norm")
        if value is None:
            continue
        protocol = str(record.get("protocol") or "")
        scores[protocol] = Score(
            value=value,
            stderr=number(record, "acc_norm_stderr"),
            protocol=protocol,
            questions=number(record, "questions"),
            published=published_hellaswag(protocol),
        )
    return scores


def _all(records: list[JsonObject], key: str) -> list[float]:
    return [v for v in (number(r, key) for r in records) if v is not None]


def _last(values: list[float]) -> float | None:
    return values[-1] if values else None


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
