"""Batches of steps whose numbers were bad, kept in the run folder, so that `outpace replay` can run
them again.

    incidents/step-00000123/incident.json         what was wrong; -r1 after a rollback
                            process-0.safetensors tokens (B, T + 1) of each micro-batch
"""

from dataclasses import asdict

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from outpace.checkpoint import store
from outpace.core.files import replace_json
from outpace.core.log import warn
from outpace.train.assemble import Session
from outpace.train.guard import Incident
from outpace.train.progress import Progress

MOST = 20
"""Incidents whose batches are kept; the rest are in events.jsonl alone."""


def record(s: Session, progress: Progress, incident: Incident, data_step: int) -> None:
    """Report an incident and save its batch, read again from the dataset; every process saves its
    own. Failing to do so never stops the training."""
    values, main = incident.values, s.group.ranks.is_main
    about = {
        "bad": incident.kind,
        **asdict(values),
        "loss_limit": incident.loss_limit,
        "norm_limit": incident.norm_limit,
        "data_step": data_step,
        "lineage": progress.lineage,
        "world_size": s.group.ranks.world_size,
        "mixed_precision": s.plan.mixed_precision,
        "tokenizer": s.tokenizer.name,
    }
    if main:
        s.folder.event("bad numbers", **about)
        warn(
            f"[{incident.kind.upper().replace(' ', '-')}] step {values.step}: loss "
            f"{values.loss:.4g}, gradient norm {values.grad_norm:.4g}"
            + ("; not applied" if values.skipped else "")
        )
    scale_settles = s.plan.mixed_precision == "fp16" and incident.kind == "not finite"
    folder = s.folder.incidents / store.name_of(values.step, progress.lineage)
    others = [path for path in s.folder.incidents.glob("*") if path != folder]  # a peer's is ours
    if scale_settles or len(others) >= MOST:
        return
    try:
        for made in (s.folder.incidents, folder):  # never the run folder
            made.mkdir(exist_ok=True)
        batches = [
            s.loader.micro_batch(data_step, m) for m in range(s.plan.gradient_accumulation_steps)
        ]
        tokens = {f"{b.position:06d}": b.tokens.to(torch.int32) for b in batches}
        save_file(tokens, folder / f"process-{s.group.ranks.rank}.safetensors")
        if main:
            replace_json(folder / "incident.json", about)
    except (OSError, SafetensorError) as error:  # safetensors has no OSError for a full disk
        why = getattr(error, "strerror", None) or error
        warn(f"the batch of step {values.step} could not be kept ({why})")
