"""Published figures that results are shown against, each with its protocol and source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedScore:
    """One number somebody else reported."""

    model: str
    task: str
    protocol: str
    metric: str
    value: float
    source: str


_SCRIPT = "karpathy/build-nanogpt, hellaswag.py docstring"
_HARNESS = "EleutherAI lm-evaluation-harness, as quoted in karpathy/build-nanogpt, hellaswag.py"

HELLASWAG = (
    PublishedScore("GPT-2 124M", "hellaswag", "completion", "acc", 0.2859, _SCRIPT),
    PublishedScore("GPT-2 124M", "hellaswag", "completion", "acc_norm", 0.2955, _SCRIPT),
    PublishedScore("GPT-2 124M", "hellaswag", "harness", "acc", 0.2892, _HARNESS),
    PublishedScore("GPT-2 124M", "hellaswag", "harness", "acc_norm", 0.3114, _HARNESS),
)
HELLASWAG_CHANCE = 0.25


def gpt2_hellaswag(protocol: str, metric: str) -> PublishedScore:
    """The original 124M checkpoint's HellaSwag score under `protocol`, for `metric`."""
    return next(s for s in HELLASWAG if (s.protocol, s.metric) == (protocol, metric))
