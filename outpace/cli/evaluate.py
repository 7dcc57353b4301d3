"""`outpace evaluate MODEL`: validation loss and HellaSwag of a model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from outpace.config.check import Range, check_ranges
from outpace.config.load import parse_flags
from outpace.core.errors import StorageError, UsageError
from outpace.core.files import replace_file, replace_json
from outpace.core.log import note, show
from outpace.core.registry import nearest

TASKS = ("loss", "hellaswag")
RANGES = {"val_tokens": Range(1, 10**12), "limit": Range(1, 1_000_000)}


@dataclass
class Options:
    """Score a model on fixed tokens and fixed questions."""

    model: Annotated[str, tyro.conf.Positional]
    """A run, a checkpoint or Hugging Face folder, or hf:NAME."""
    tasks: str = "loss,hellaswag"
    """Comma-separated: loss, hellaswag."""
    protocol: Literal["completion"] = "completion"
    """HellaSwag's rendering: completion (raw ctx, normalised by tokens)."""
    dataset: str = "auto"
    """Prepared dataset whose validation split gives the loss."""
    val_tokens: int = 1_048_576
    """Tokens of it to score, always the first ones."""
    limit: int | None = None
    """HellaSwag questions, spread evenly over the split. Default: all 10,042."""
    hellaswag_path: Path = Path("data/hellaswag/hellaswag_val.jsonl")
    """The questions, as `outpace prepare hellaswag` leaves them."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Compute type; no is fp32, the exact one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    output: Path | None = None
    """Write the results here as JSON."""
    details: Path | None = None
    """Write a line an example here: ind, label, pred, pred_norm, log_likelihoods."""
    json: bool = False
    """Print JSON only."""


def run(argv: list[str]) -> int:
    options: Options = parse_flags(Options, argv, prog="outpace evaluate")
    tasks = _tasks(options.tasks)
    check_ranges(options, RANGES, "outpace evaluate")
    for path in (options.output, options.details):
        if path and not path.parent.is_dir():
            raise StorageError("NO-FOLDER", f"there is no folder {path.parent}", do="make it first")

    from outpace.evals.loss import validation_loss
    from outpace.evals.tasks import hellaswag
    from outpace.runtime.distributed import Group, Ranks
    from outpace.runtime.hardware import detect
    from outpace.tokenizer import get_tokenizer
    from outpace.train.assemble import choose_device
    from outpace.train.corpus import open_named
    from outpace.train.evaluate import hellaswag_line
    from outpace.train.load_model import load_model

    device = choose_device(options.device, 0)
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if detect(device.type).bf16 else "no"
    questions = []
    if "hellaswag" in tasks:
        questions = hellaswag.subset(hellaswag.load(options.hellaswag_path), options.limit)
    loaded = load_model(options.model, device)
    tokenizer, group = get_tokenizer(loaded.tokenizer), Group(Ranks(), device)
    results: dict[str, Any] = {"model": loaded.source, "step": loaded.step, "precision": precision}
    if not options.json:
        note(f"model {loaded.source}, {precision} on {device}")

    if "loss" in tasks:
        dataset = open_named(_dataset_of(options))
        if dataset.tokenizer != loaded.tokenizer:
            raise UsageError(
                "TOKENIZER",
                f"{dataset.folder} was made with {dataset.tokenizer}, the model reads "
                f"{loaded.tokenizer}",
                do="prepare the text with the model's tokenizer",
            )
        stream = dataset.stream("val")
        if len(stream) < 2:
            raise UsageError("NO-VALIDATION", f"{dataset.folder} has no validation tokens")
        loss = validation_loss(
            loaded.model,
            stream.read,
            tokens=min(options.val_tokens, len(stream) - 1),
            context=loaded.model.shape.context,
            token_bytes=tokenizer.token_bytes(),
            device=device,
            precision=precision,
            group=group,
        )
        assert loss is not None
        results["validation"] = {
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
        } | asdict(loss)
        if not options.json:
            show(
                f"validation loss {loss.loss:.4f} nats a token on {dataset.name} (unigram entropy "
                f"{dataset.unigram_entropy:.4f}), perplexity {loss.perplexity:.2f}, "
                f"{loss.bits_per_byte:.4f} bits a byte, over {loss.tokens_scored:,} tokens"
            )
    if "hellaswag" in tasks:
        if tokenizer.name != "gpt2":
            raise UsageError("TOKENIZER", f"HellaSwag needs gpt2, the model reads {tokenizer.name}")
        scored = hellaswag.evaluate(
            loaded.model, tokenizer, questions, device=device, precision=precision, group=group
        )
        assert scored is not None
        record, answers = scored
        results["hellaswag"] = record
        if not options.json:
            show(hellaswag_line(record))
        if options.details:
            lines = (json.dumps(asdict(a)) for a in answers)
            replace_file(options.details, "".join(f"{line}\n" for line in lines))
    if options.json:
        show(json.dumps(results, indent=2))
    if options.output:
        replace_json(options.output, results)
    return 0


def _tasks(names: str) -> list[str]:
    """The tasks of `--tasks`; UsageError for an unknown one, or none."""
    tasks = [name.strip() for name in names.split(",")]
    for task in tasks:
        if task not in TASKS:
            raise UsageError(
                "UNKNOWN-TASK",
                f"no task {task!r}{nearest(task, TASKS)}",
                do=f"choose from {', '.join(TASKS)}",
            )
    return tasks


def _dataset_of(options: Options) -> str:
    """The dataset asked for, else the one that the run was trained on."""
    plan = Path(options.model) / "plan.json"
    if options.dataset != "auto" or not plan.exists():
        return options.dataset
    return str(json.loads(plan.read_text(encoding="utf-8"))["dataset"]["path"])
