"""Scores as lines of text, each with its protocol, its error and GPT-2's published score."""

from typing import Any

from outpace.core.published import PublishedScore, gpt2_published
from outpace.core.units import count


def task_line(record: dict[str, Any]) -> str:
    """One task's record as a line; GPT-2's scores beside it are those of the whole task."""
    task, protocol, n = record["task"], record["protocol"], record["questions"]
    name = "HellaSwag" if task == "hellaswag" else task
    metrics: list[str] = [m for m in ("acc_norm", "acc_bytes", "acc", "perplexity") if m in record]
    scores = ", ".join(_score(record, metric) for metric in metrics)
    if part := record.get("subset"):
        return f"{name} ({protocol}, {n:,} questions of {part}): {scores}"
    return f"{name} ({protocol}, {n:,} questions): {scores}{_beside(task, protocol, metrics)}"


def parts_lines(record: dict[str, Any]) -> list[str]:
    """A line for each part of a task, and one for the questions that are not contaminated."""
    lines = []
    for kind, named in record.get("by", {}).items():
        for name, part in named.items():
            metric = "acc_norm" if "acc_norm" in part else "acc"
            lines.append(f"  {kind} {name} ({part['questions']:,}): {_score(part, metric)}")
    if clean := record.get("clean"):
        scores = ", ".join(_score(clean, m) for m in ("acc_norm", "acc_bytes", "acc") if m in clean)
        left = scores or "no question is left"
        lines.append(f"  not in {clean['dataset']} ({clean['questions']:,}): {left}")
    return lines


def loss_line(record: dict[str, Any], dataset: str, unigram_entropy: float) -> str:
    """A validation loss, beside the unigram entropy that a model without context would reach."""
    each = ", ".join(f"{name} {loss:.4f}" for name, loss in record.get("by_dataset", {}).items())
    return (
        f"validation loss {record['loss']:.4f} nats per token on {dataset} (unigram entropy "
        f"{unigram_entropy:.4f}{_beside('validation', dataset, ['loss'])}), perplexity "
        f"{_perplexity(record)}, {record['bits_per_byte']:.4f} bits per byte, over "
        f"{count(record['tokens_scored'])} tokens" + (f"; {each}" if each else "")
    )


def text_line(record: dict[str, Any]) -> str:
    """The perplexity of a text file."""
    return (
        f"{record['file']}: {record['bits_per_byte']:.4f} bits per byte, {record['loss']:.4f} nats "
        f"per token, perplexity {_perplexity(record)}, over {record['tokens_scored']:,} tokens "
        f"({record['bytes']:,} bytes)"
    )


def _score(record: dict[str, Any], metric: str) -> str:
    if metric == "perplexity":
        return f"perplexity {_perplexity(record)}"
    return f"{metric} {record[metric]:.4f} ± {record[f'{metric}_stderr']:.4f}"


def _perplexity(record: dict[str, Any]) -> str:
    value = record["perplexity"]
    return f"{value:.2f}" if value < 1e6 else f"{value:.3g}"


def _beside(task: str, protocol: str, metrics: list[str]) -> str:
    found = [s for m in metrics if (s := gpt2_published(task, protocol, m))]
    if not found:
        return ""
    scores = ", ".join(f"{s.metric} {_number(s)}" for s in found)
    return f"; {found[0].model}: {scores} ({found[0].source})"


def _number(s: PublishedScore) -> str:
    return f"{s.value:.2f}" if s.metric == "perplexity" else f"{s.value:.4f}"
