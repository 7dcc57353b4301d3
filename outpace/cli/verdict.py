"""`outpace verdict RUN`: is it better than GPT-2 or another model, beyond chance?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from outpace.config.load import parse_flags
from outpace.config.ranges import Range
from outpace.config.schema import HELLASWAG_PATH
from outpace.core.errors import NotMet, StorageError, UsageError
from outpace.core.files import check_writable, replace_json
from outpace.core.log import show, show_json, warn
from outpace.core.runfolder import RunFolder


@dataclass
class Options:
    """Score both models on the same questions and give a verdict: beats (the 95% interval of the
    difference lies above zero), does not (below), or cannot tell. The exit code is 0 whatever the
    verdict, unless --require is given. A run keeps it as verdict.json; its report shows it."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Any MODEL that `outpace evaluate` takes, or a .jsonl of its --details."""
    against: str = "gpt2"
    """gpt2 (the original from the hub, or its published scores if the hub cannot be reached),
    published (only those), or another model or .jsonl, as above."""
    protocol: str = "both"
    """HellaSwag's renderings, which give different scores: completion, harness, or both."""
    task: str = "hellaswag"
    """hellaswag, or another task of `outpace evaluate`."""
    metric: str = ""
    """acc, acc_norm or acc_bytes (not in HellaSwag's completion). Default: acc_norm if the task
    has it, else acc."""
    limit: Annotated[int | None, Range(1, 1_000_000)] = None
    """Questions, spread evenly over the task. Default: all; HellaSwag has 10,042."""
    contamination: Path | None = None
    """A record of `outpace contamination`: also score without the questions found there.
    Default: the one beside the dataset the run was trained on."""
    require: Literal["", "beats"] = ""
    """Exit with code 11 on any other verdict."""
    hellaswag_path: Path = Path(HELLASWAG_PATH)
    """The questions, as `outpace prepare hellaswag` leaves them."""
    task_data: str = "data/tasks"
    """Rows of the other tasks, as for `outpace evaluate`."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Compute type of both; no is fp32, the exact one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    details: Path | None = None
    """Existing folder in which to save both models' answers, model.jsonl and baseline.jsonl. These
    files can be given instead of the models, which are then not scored again."""
    output: Path | None = None
    """Also write the record here, as JSON."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace verdict")
    for path in (options.details and options.details / "model.jsonl", options.output):
        if path:
            check_writable(path)

    from outpace.evals.task import Task
    from outpace.evals.tasks import TASKS
    from outpace.runtime.device import choose_device
    from outpace.runtime.distributed import Group, ranks_from_environment
    from outpace.tools import verdict as v
    from outpace.tools.questions import check_protocols, questions
    from outpace.train.alike import check_model, question_hash

    task: Task = TASKS.load(options.task)
    protocols = check_protocols(options.protocol)
    if options.task != "hellaswag":
        protocols = [task.protocols[0]]
    ranks = ranks_from_environment()
    device = choose_device(options.device, ranks.local_rank)
    dirty = v.find_contamination(options.contamination, options.model, options.task)
    if dirty and dirty.task != options.task:
        raise UsageError(
            "CONTAMINATION",
            f"the record is about {dirty.task}, not {options.task}",
            do=f"make one with outpace contamination --task {options.task}",
        )
    model, against = v.side(options.model, device), v.baseline(options.against, device)
    metrics = v.check(model, against, [(task, p) for p in protocols], options.metric)
    asked = []
    if not model.loaded and not against.loaded and options.limit:
        raise UsageError(
            "BAD-VALUE", "--limit is for models that are scored here", do="leave it out"
        )
    if model.loaded or against.loaded:
        asked = list(
            questions(
                [options.task],
                protocols,
                hellaswag_path=options.hellaswag_path,
                task_data=options.task_data,
                limit=options.limit,
            )
        )
    settings: dict[str, Any] = {"metrics": metrics, "questions": question_hash(asked)}
    settings |= {"protocols": protocols, "mixed_precision": options.mixed_precision}
    with Group(ranks, device) as group:
        for one in (model, against):
            check_model(
                group, one.loaded.model if one.loaded else None, {**settings, "kind": one.kind}
            )
        for side, name in ((model, "model"), (against, "baseline")):
            examples = v.score(side, asked, precision=options.mixed_precision, group=group)
            if options.details and ranks.is_main:
                v.keep(options.details, name, examples)
    compared = [(options.task, p, m) for p, m in zip(protocols, metrics, strict=True)]
    record = v.verdict(model, against, compared, dirty)
    if ranks.is_main:
        _tell(options, record)
    if options.require and record["answer"] != options.require:
        raise NotMet("NOT-" + options.require.upper(), record["sentence"])
    return 0


def _tell(options: Options, record: dict[str, Any]) -> None:
    if options.json:
        show_json(record)
    else:
        _say(record)
    folder = RunFolder(Path(options.model))
    if folder.plan.is_file():
        try:
            replace_json(folder.verdict, record)
        except StorageError as error:  # another user's run; scoring may have taken hours
            warn(f"{error.what}; --output keeps the verdict elsewhere")
    if options.output:
        replace_json(options.output, record)


def _say(record: dict[str, Any]) -> None:
    for comparison in record["comparisons"]:
        show(comparison["sentence"])
    for source in record["baseline"]["sources"]:
        show(f"published by: {source}")
    if found := record["contamination"]:
        show(f"without the {found['questions']:,} questions that occur in {found['dataset']}:")
        for clean in record["clean"]:
            show(f"  {clean['sentence']}")
    show(record["sentence"])
