"""EleutherAI's lm-eval as an independent judge: its own task files over the rows of a local file,
without a network. Needs `lm_eval[hf]`.
"""

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TASK_FILES = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "winogrande": "winogrande/default.yaml",
}
METRICS = {
    "hellaswag": {"metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_bytes")]},
}
"""The task's own metrics, and accuracy normalised by bytes, which lm-eval can also count."""


def local_task(
    name: str, rows: Sequence[dict[str, Any]], folder: Path, **changes: str | None
) -> Any:
    """lm-eval's task `name` over `rows`, which are written to `folder`; `samples` runs it.
    `changes` replace settings of the task file."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the library is imported
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    original = Path(lm_eval.__file__).parent / "tasks" / TASK_FILES[name]
    settings = {
        "include": str(original),
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(folder)},
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
        "tag": [],
        **METRICS.get(name, {}),
        **changes,
    }
    # JSON is valid YAML.
    (folder / f"local_{name}.yaml").write_text(json.dumps(settings), encoding="utf-8")
    with _quiet():
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        return manager.load([f"local_{name}"])


def model(
    transformers_model: Any,
    tokenizer: Path,
    batch_size: int,
    encode: Callable[[str], list[int]] | None = None,
) -> Any:
    """lm-eval's wrapper around a transformers model in memory, with the tokenizer in the folder
    `tokenizer`; `encode` replaces its encoding of texts."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    with _quiet():
        lm = HFLM(
            pretrained=transformers_model,
            tokenizer=AutoTokenizer.from_pretrained(tokenizer),
            batch_size=batch_size,
            device="cpu",
        )
    if encode is not None:
        lm.tok_encode = lambda text, **_: encode(text)
    return lm


def samples(lm: Any, task: Any) -> list[dict[str, Any]]:
    """lm-eval's record of each row, in order: `filtered_resps` holds the log-likelihoods."""
    from lm_eval.evaluator import evaluate

    with _quiet():
        found = evaluate(lm=lm, task_dict=task, bootstrap_iters=0, log_samples=True)
    (records,) = found["samples"].values()
    ordered: list[dict[str, Any]] = sorted(records, key=lambda record: record["doc_id"])
    return ordered


def log_likelihoods(sample: dict[str, Any]) -> list[float]:
    """The log-likelihood of each choice of a row."""
    return [float(response[0]) for response in sample["filtered_resps"]]


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress progress bars and log lines."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
