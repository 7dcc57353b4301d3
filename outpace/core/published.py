"""Published scores that results are compared with, each with its protocol and source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedScore:
    model: str
    task: str
    protocol: str
    metric: str
    value: float
    source: str
    questions: int = 0
    """Number of questions behind an accuracy; 0 for other metrics."""


_SCRIPT = "karpathy/build-nanogpt, hellaswag.py docstring"
_HARNESS = "EleutherAI lm-evaluation-harness, as quoted in karpathy/build-nanogpt, hellaswag.py"

HELLASWAG = (
    PublishedScore("GPT-2 124M", "hellaswag", "completion", "acc", 0.2859, _SCRIPT, 10_042),
    PublishedScore("GPT-2 124M", "hellaswag", "completion", "acc_norm", 0.2955, _SCRIPT, 10_042),
    PublishedScore("GPT-2 124M", "hellaswag", "harness", "acc", 0.2892, _HARNESS, 10_042),
    PublishedScore("GPT-2 124M", "hellaswag", "harness", "acc_norm", 0.3114, _HARNESS, 10_042),
)
HELLASWAG_CHANCE = 0.25
_LAMBADA = "EleutherAI lm-evaluation-harness, issue 2159 (lambada_openai)"
LAMBADA = (
    PublishedScore("GPT-2 124M", "lambada", "harness", "acc", 0.3256, _LAMBADA, 5153),
    PublishedScore("GPT-2 124M", "lambada", "harness", "perplexity", 40.0554, _LAMBADA),
)
VALIDATION = (
    PublishedScore(
        "GPT-2 124M", "validation", "openwebtext", "loss", 3.12, "karpathy/nanoGPT, README"
    ),
    PublishedScore(
        "GPT-2 124M",
        "validation",
        "fineweb_edu",
        "loss",
        3.2924,
        "karpathy/build-nanogpt, play.ipynb",
    ),
)
"""Nats per token on somebody else's validation tokens of that corpus: not the same tokens as here.
"""


def gpt2_published(task: str, protocol: str, metric: str) -> PublishedScore | None:
    """The published score of the original 124M checkpoint, or None. The `protocol` of a validation
    loss is the corpus."""
    wanted = (task, protocol.replace("-", "_"), metric)
    table = (*HELLASWAG, *LAMBADA, *VALIDATION)
    return next((s for s in table if (s.task, s.protocol, s.metric) == wanted), None)
