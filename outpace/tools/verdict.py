"""The comparison of two models, scored by the same code on the same questions, as the record that
is kept in a run folder and shown in a report.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from outpace.core.console import bar
from outpace.core.errors import DataError, NetworkError, OutpaceError, UsageError
from outpace.core.files import JsonObject, replace_json_lines
from outpace.core.log import note, warn
from outpace.core.published import PublishedScore, gpt2_published
from outpace.core.runfolder import RunFolder, now
from outpace.evals import answers, contamination, statistics
from outpace.evals.answers import Answers
from outpace.evals.contamination import Contamination
from outpace.evals.task import Item, Task, ask, evaluate
from outpace.evals.verdict import (
    BEATS,
    CANNOT_TELL,
    Comparison,
    compare,
    compare_published,
    overall,
)
from outpace.model.matrices import for_inference
from outpace.runtime.distributed import Group
from outpace.tokenizer import get_tokenizer
from outpace.train.corpus import open_mixture, trained_on
from outpace.train.load_model import LoadedModel, load_model

GPT2, PUBLISHED = "gpt2", "published"
DETAILS = ".jsonl"
FORMAT = 1
Questions = Sequence[tuple[Task, str, list[Item]]]


@dataclass
class Side:
    """One of the two models: its weights, its answers, or its published scores."""

    name: str
    kind: str
    """weights, details or published."""
    loaded: LoadedModel | None = None
    answers: list[Answers] = field(default_factory=list)
    reason: str = ""
    """Why it is not the model that was asked for."""

    def about(self) -> JsonObject:
        step = self.loaded.step if self.loaded else None
        return {"name": self.name, "kind": self.kind, "step": step, "reason": self.reason}

    def answers_to(self, task: str, protocol: str) -> Answers:
        """DataError if there are none."""
        for one in self.answers:
            if (one.task, one.protocol) == (task, protocol):
                return one
        known = ", ".join(f"{a.task} ({a.protocol})" for a in self.answers)
        raise DataError(
            "NO-ANSWERS",
            f"{self.name} has no answers to {task}, {protocol} protocol; it has {known or 'none'}",
            do=f"--protocol {self.answers[0].protocol}" if self.answers else "",
        )


def side(reference: str, device: torch.device) -> Side:
    """The loaded model of a reference, or the answers in a file written by `--details`."""
    if reference.endswith(DETAILS):
        return Side(reference, "details", answers=answers.read(Path(reference)))
    loaded = load_model(reference, device)
    return Side(loaded.source, "weights", loaded)


def baseline(reference: str, device: torch.device) -> Side:
    """The model to compare with. `gpt2` is the original, from the hub or its cache; if it is not
    available, its published scores. NetworkError only for an explicit `hf:` reference."""
    if reference == PUBLISHED:
        return Side("GPT-2 124M (published)", PUBLISHED)
    if reference != GPT2 or Path(reference).is_dir():
        return side(reference, device)
    try:
        return side(f"hf:{GPT2}", device)
    except (NetworkError, UsageError) as error:
        note(f"GPT-2's weights are not available, so its published scores are used: {error.what}")
        return Side("GPT-2 124M (published)", PUBLISHED, reason=error.what)


def check(
    model: Side, against: Side, asked: Sequence[tuple[Task, str]], metric: str = ""
) -> list[str]:
    """The metric to compare in each (task, protocol) of `asked`: the named one, else acc_norm if it
    exists, else acc. Called before the slow scoring: DataError if a side's answers lack a task, or
    a part of it that a published score is about, UsageError if it lacks the metric or does not read
    GPT-2's tokens."""
    for one in (model, against):
        if one.loaded and one.loaded.tokenizer != "gpt2":
            reads = one.loaded.tokenizer
            raise UsageError(
                "TOKENIZER", f"{one.name} reads {reads} tokens, but the questions need gpt2"
            )
    chosen = []
    for task, protocol in asked:
        sides = [one for one in (model, against) if one.kind != PUBLISHED]
        known = [
            one.answers_to(task.name, protocol).right
            if one.kind == "details"
            else task.metrics[protocol]
            for one in sides
        ]
        wanted = metric or ("acc_norm" if "acc_norm" in known[0] else "acc")
        if any(wanted not in metrics for metrics in known):
            common = [name for name in known[0] if all(name in metrics for metrics in known)]
            able = [p for p in task.protocols if wanted in task.metrics[p]]
            raise UsageError(
                "NO-METRIC",
                f"{task.name}, {protocol} protocol, has no {wanted}; it has {', '.join(common)}",
                do=f"--protocol {able[0]}" if able else "--metric " + " or ".join(common),
            )
        if against.kind == PUBLISHED:
            _published(task.name, protocol, wanted)
            if model.kind == "details":
                _check_sources(model.name, model.answers_to(task.name, protocol))
        chosen.append(wanted)
    return chosen


def score(of: Side, questions: Questions, *, precision: str, group: Group) -> list[JsonObject]:
    """Let a side with weights answer; returns the records of its examples, as for `--details`."""
    if of.loaded is None:
        return []
    tokenizer, model = get_tokenizer(of.loaded.tokenizer), for_inference(of.loaded.model, precision)
    examples: list[JsonObject] = []
    for task, protocol, items in questions:
        if group.ranks.is_main:
            note(f"{of.name}: {len(items):,} questions of {task.name}, {protocol} protocol")
        with bar(f"{task.name}, {protocol}", group.ranks.is_main) as keep_going:
            scored = evaluate(
                model,
                ask(task, protocol, items, tokenizer),
                precision=precision,
                group=group,
                keep_going=keep_going,
            )
        assert scored is not None
        examples += scored[1]
    of.answers = answers.collect(examples)
    return examples


def verdict(
    model: Side,
    against: Side,
    asked: Sequence[tuple[str, str, str]],
    dirty: Contamination | None = None,
) -> JsonObject:
    """The record of the comparison over each (task, protocol, metric) of `asked`. DataError if a
    side has no answers to one."""
    comparisons, clean, sources = [], [], set()
    for task, protocol, metric in asked:
        mine = model.answers_to(task, protocol)
        if against.kind == PUBLISHED:
            other, published = None, _published(task, protocol, metric)
            sources.add(published.source)
            comparisons.append(compare_published(mine, published))
        else:
            other = against.answers_to(task, protocol)
            comparisons.append(compare(mine, other, metric))
        if dirty and dirty.task == task:
            clean.append(_clean(answers.without(mine, dirty.questions), other, metric))
    answer = overall(comparisons)
    return {
        "format": FORMAT,
        "time": now(),
        "answer": answer,
        "sentence": sentence(answer, model.name, against.name, comparisons),
        "model": model.about(),
        "baseline": {**against.about(), "sources": sorted(sources)},
        "comparisons": [_told(c) for c in comparisons],
        "contamination": asdict(dirty) | {"questions": len(dirty.questions)} if dirty else None,
        "clean": clean,
    }


def sentence(answer: str, model: str, against: str, comparisons: Sequence[Comparison]) -> str:
    """The answer in words."""
    where = ", ".join(f"{c.task} {c.metric} ({c.protocol})" for c in comparisons)
    if answer == CANNOT_TELL:
        each = {c.answer for c in comparisons}
        why = "the difference is within chance"
        if len(each) > 1:
            why = "; ".join(f"{c.protocol}: {c.answer}" for c in comparisons)
        return f"cannot tell whether {model} beats {against} on {where}: {why}"
    return f"{model} {'beats' if answer == BEATS else 'does not beat'} {against} on {where}"


def find_contamination(given: Path | None, reference: str, task: str) -> Contamination | None:
    """The record in the file `given`, or those beside the datasets on which the run was trained, if
    each dataset has one and is unchanged."""
    if given is not None:
        return contamination.read(given)
    try:
        read, fingerprint = trained_on(RunFolder(Path(reference)))
        mixture = open_mixture(read)
    except (OSError, OutpaceError):
        return None  # not a run, or its data is unknown or gone
    paths = [dataset.folder / contamination.file_name(task) for dataset in mixture.datasets]
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        return None
    if missing:
        warn(f"there is no {missing[0]}, so there is no score without contaminated questions")
        return None
    found = [contamination.read(path) for path in paths]
    if fingerprint != mixture.fingerprint:
        warn(f"{read} has other tokens than the run was trained on; its records are left out")
        return None
    for path, record, dataset in zip(paths, found, mixture.datasets, strict=True):
        if record.fingerprint != dataset.fingerprint:
            warn(f"{path} is about other tokens than the run was trained on; it is left out")
            return None
    questions = frozenset().union(*(record.questions for record in found))
    return Contamination(task, mixture.name, fingerprint, questions)


def keep(folder: Path, name: str, examples: Sequence[JsonObject]) -> None:
    """Write a side's answers to a file, which can later be given instead of the model."""
    if examples:
        replace_json_lines(folder / f"{name}{DETAILS}", examples)


def _published(task: str, protocol: str, metric: str) -> PublishedScore:
    found = gpt2_published(task, protocol, metric)
    if found is None or not found.questions:
        raise UsageError(
            "NOT-PUBLISHED",
            f"no score of GPT-2 is published for {task} {metric}, {protocol} protocol",
            do="give its weights or answers with --against",
        )
    return found


def _check_sources(name: str, mine: Answers) -> None:
    """DataError if the answers are to one of HellaSwag's sources alone: a published score is of
    both, which need not be equally hard."""
    kinds = {source.partition("~")[0] for source in mine.sources}
    if mine.task == "hellaswag" and len(kinds) == 1 < len(mine):
        raise DataError(
            "SUBSET",
            f"{name} has answers to the questions of {kinds.pop()} alone, and the published score "
            "is of all",
            do="score the whole split, or give the baseline's answers with --against",
        )


def _told(comparison: Comparison) -> JsonObject:
    return {**comparison.record(), "sentence": comparison.sentence()}


def _clean(kept: Answers, other: Answers | None, metric: str) -> JsonObject:
    """The comparison over the questions in `kept`; if the baseline's answers are not known, the
    model's score alone."""
    name = {"task": kept.task, "protocol": kept.protocol, "metric": metric}
    if not kept.names or (other and not set(kept.names) & set(other.names)):
        words = f"{kept.task} {metric}, {kept.protocol} protocol: no question is left"
        return {**name, "questions": 0, "sentence": words}
    return _told(compare(kept, other, metric)) if other else _alone(kept, metric)


def _alone(kept: Answers, metric: str) -> JsonObject:
    """A score by itself, with Wilson's interval."""
    right, n = int(kept.right[metric].sum()), len(kept)
    interval = statistics.wilson(right, max(1, n))
    share, low, high = right / max(1, n), float(interval.low), float(interval.high)
    return {
        "task": kept.task,
        "protocol": kept.protocol,
        "metric": metric,
        "questions": n,
        "model": share,
        "low": low,
        "high": high,
        "sentence": f"{kept.task} {metric}, {kept.protocol} protocol: {share:.2%}, 95% interval "
        f"{low:.2%} to {high:.2%} ({n:,} questions)",
    }
