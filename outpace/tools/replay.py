"""Replay of a bad batch, to find the sequences and parameters that give bad numbers."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from outpace.checkpoint import store
from outpace.core.errors import DataError, UsageError
from outpace.core.runfolder import RunFolder
from outpace.core.runstate import no_run
from outpace.model.gpt2 import GPT2
from outpace.runtime.precision import autocast
from outpace.train.load_model import load_model

WORST = 5


@dataclass(frozen=True)
class Replay:
    """The result of the batch in one precision."""

    precision: str
    loss: float
    """Mean nats per token."""
    grad_norm: float
    sequences_not_finite: list[int]
    worst_sequences: list[tuple[int, float]]
    """(place in the batch, loss), the highest first."""
    parameters_not_finite: list[str]
    largest_gradients: list[tuple[str, float]]
    """(parameter, norm), the largest first."""


def incidents(folder: RunFolder) -> list[Path]:
    """Kept batches by lineage and step, oldest first."""
    return [p for p in store.paths(folder.incidents) if (p / "incident.json").is_file()]


def find(folder: RunFolder, step: int | None) -> Path:
    """The incident of `step`, or the newest. UsageError if there is none, naming the others, or if
    the folder is not a run."""
    if not folder.plan.is_file():
        raise no_run(folder, folder.plan)
    found = incidents(folder)
    chosen = [p for p in found if step is None or store.step_of(p) == step]
    if not chosen:
        there = ", ".join(str(store.step_of(p)) for p in found)
        raise UsageError(
            "NO-INCIDENT",
            f"{folder.root} has no bad batch" + ("" if step is None else f" of step {step}"),
            do=f"choose --step from {there}" if there else "nothing to replay",
        )
    return chosen[-1]


def read(incident: Path) -> tuple[dict[str, Any], torch.Tensor]:
    """The content of incident.json, and the tokens (B, T + 1) of all processes in order."""
    try:
        about: dict[str, Any] = json.loads((incident / "incident.json").read_text())
        _ = about["step"], about["mixed_precision"], about["tokenizer"]
        parts: dict[str, torch.Tensor] = {}
        for rank in range(about["world_size"]):  # an earlier start may have left more files
            parts |= load_file(incident / f"process-{rank}.safetensors")
        return about, torch.cat([parts[name] for name in sorted(parts)]).long()
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        raise DataError(
            "INCIDENT", f"{incident} cannot be read ({error})", do="choose another --step"
        ) from error


def weights_before(folder: RunFolder, incident: Path) -> Path:
    """The newest good checkpoint before an incident, in its lineage or an earlier one; else the
    oldest good one."""
    good = [p for p in store.paths(folder.checkpoints) if store.fault(p) is None]
    if not good:
        raise UsageError(
            "NO-CKPT", f"{folder.root} has no checkpoint", do="choose a model with --model"
        )
    place = store.place_of(incident)
    early = [p for p in good if store.place_of(p) < place and store.step_of(p) < place[1]]
    return (early or good[:1])[-1]


def replay(reference: str, tokens: torch.Tensor, device: torch.device, precision: str) -> Replay:
    """Forward and backward of each sequence with the weights of `reference`, without dropout."""
    model = load_model(reference, device).model
    if tokens.max() >= model.shape.vocab_size or tokens.shape[1] - 1 > model.shape.context:
        raise UsageError("OTHER-MODEL", f"{reference} cannot read this batch", do="choose its run")
    losses, targets = [], tokens[:, 1:].numel()
    for row in tokens.split(1):
        row = row.to(device)
        with autocast(device, precision):
            loss = model(row[:, :-1], row[:, 1:])
        loss.backward()  # of the sum: a mean's gradients would underflow in fp16
        losses.append(loss.item() / (tokens.shape[1] - 1))
    return _summary(model, losses, targets, precision)


def _summary(model: GPT2, losses: list[float], targets: int, precision: str) -> Replay:
    norms = {
        n: float(p.grad.norm()) / targets for n, p in model.named_parameters() if p.grad is not None
    }
    order = sorted(range(len(losses)), key=lambda i: -_rank(losses[i]))
    return Replay(
        precision=precision,
        loss=sum(losses) / len(losses),
        grad_norm=math.sqrt(sum(n * n for n in norms.values())),
        sequences_not_finite=[i for i, loss in enumerate(losses) if not math.isfinite(loss)],
        worst_sequences=[(i, losses[i]) for i in order[:WORST]],
        parameters_not_finite=[n for n, norm in norms.items() if not math.isfinite(norm)],
        largest_gradients=sorted(norms.items(), key=lambda item: -_rank(item[1]))[:WORST],
    )


def _rank(value: float) -> float:
    return value if math.isfinite(value) else math.inf
