"""Parameter groups, optimisers and schedules."""

from outpace.core.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "outpace.optim.adamw:build",
        "adamw_foreach": "outpace.optim.adamw:ForeachAdamW",
        "muon": "outpace.optim.muon:build",
    },
)
"""Entry: build(groups, lr, **options) -> torch.optim.Optimizer. Its `step` must change nothing if
its attribute `found_inf`, a device scalar, is 1; PyTorch's fused optimisers do so."""
