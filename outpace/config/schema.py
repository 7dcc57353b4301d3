"""Every setting of a training run, with its unit and default: the flags of `outpace train`.

A value of `auto` is soft: the plan chooses it and says why. Any other value, from a flag or a
recipe, is hard: it is obeyed or refused, never changed.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Auto = Literal["auto"]


@dataclass
class ModelConfig:
    """GPT-2's size and shape."""

    model_size: str = "124M"
    """124M, 355M (or 350M), 774M or 1558M."""
    n_layer: int | Auto = "auto"
    """Layers, instead of the size's own."""
    n_head: int | Auto = "auto"
    """Attention heads, instead of the size's own; must divide n_embd."""
    n_embd: int | Auto = "auto"
    """Channels, instead of the size's own."""
    context: int = 1024
    """Tokens a sequence (T)."""
    dropout: float = 0.0
    """Probability of dropping an activation; 0 for pre-training."""
    init_from: str = ""
    """Start from this model (run, checkpoint or Hugging Face folder) instead of random weights."""


@dataclass
class DataConfig:
    """What to train on."""

    dataset: str = "auto"
    """A prepared folder, or the name of one below data/. auto: openwebtext if it is prepared,
    else pydocs, the documentation inside this Python installation."""


@dataclass
class BatchConfig:
    """tokens_per_step = micro_batch_size x context x gradient_accumulation_steps x processes."""

    gradient_accumulation_steps: int | Auto = "auto"
    """Micro-steps each process sums before one optimiser step."""
    micro_batch_size: int | Auto = "auto"
    """Sequences in one forward and backward pass of one process. auto: what fits."""
    tokens_per_step: int | Auto = "auto"
    """Tokens an optimiser step, over all processes. auto: 524,288 where the other two allow."""


@dataclass
class ScheduleConfig:
    """How long to train, and the learning rate on the way."""

    max_steps: int | Auto = "auto"
    """Optimiser steps in all. auto: from max_tokens."""
    max_tokens: int | Auto = "auto"
    """Tokens in all. auto: 10 billion, but at most 4 passes over the dataset."""
    max_hours: float | Auto = "auto"
    """Save and stop, resumable, after this many hours. auto: no limit."""
    lr: float | Auto = "auto"
    """Peak learning rate. auto: GPT-3's for the size, scaled by the square root of the batch."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After warm-up: cosine to min_lr_ratio; wsd: constant, then linear cool-down; constant."""
    warmup_steps: int | Auto = "auto"
    """Steps of linear warm-up. auto: 4 % of the run, at most 700."""
    min_lr_ratio: float = 0.1
    """Last learning rate over peak, for cosine and wsd."""
    decay_fraction: float = 0.2
    """Share of the run that wsd spends cooling down."""


@dataclass
class OptimizerConfig:
    """The update."""

    optimizer: str = "adamw"
    """adamw."""
    weight_decay: float = 0.1
    """Decay of all matrices, embeddings included; never of biases and LayerNorm gains."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""


@dataclass
class ComputeConfig:
    """How the arithmetic is done."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast type of matrix products; weights and moments stay fp32."""
    use_flash_attention: bool = True
    """Attention that never stores the T x T matrix; refused if no such kernel can serve."""
    attention_backend: str = "auto"
    """A row of the attention table: sdpa, reference. auto: sdpa with flash attention on."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of model and loss together. auto: if it works here and pays for itself."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. auto: the GPU if there is one."""


@dataclass
class EvalConfig:
    """What is measured while training, and at its end."""

    eval_every_steps: int | Auto = "auto"
    """Steps between validation losses; 0 for the end only. auto: 20 times a run."""
    val_tokens: int | Auto = "auto"
    """Tokens of the validation split to score, always the same first ones. auto: by device."""
    hellaswag_every_steps: int = 0
    """Steps between HellaSwag scores; 0 for the end only."""
    hellaswag_limit: int | Auto = "auto"
    """HellaSwag questions to score; 0 for none. auto: all on a GPU, 500 on a CPU."""
    hellaswag_path: str = "data/hellaswag/hellaswag_val.jsonl"
    """The questions, as `outpace prepare hellaswag` leaves them; without the file, not scored."""
    sample_every_steps: int = 0
    """Steps between generated samples; 0 for the end only."""
    sample_prompt: str = "The "
    """How samples begin."""
    sample_tokens: int = 64
    """Tokens in a sample; 0 for no samples."""


@dataclass
class RunSettings:
    """The run folder, and what goes into it."""

    run_dir: str = "auto"
    """The run's folder. auto: runs/SIZE-DATASET-HASH, the same for the same settings, so that the
    same command finds its own run again."""
    resume: str = "auto"
    """auto: continue what is in the run folder; never: refuse a used folder; or a checkpoint."""
    save_every_steps: int | Auto = "auto"
    """Steps between checkpoints; 0 for the end only. auto: 10 times a run, at most every 1,000."""
    keep_checkpoints: int = 2
    """Newest verified checkpoints that stay; at least 2."""
    log_every_steps: int | Auto = "auto"
    """Steps between lines in metrics.jsonl. auto: 10 on a GPU, 1 on a CPU."""
    seed: int = 1337
    """Decides weights, data order and dropout."""


@dataclass
class RunConfig:
    """Train GPT-2. The same flags in the same folder continue the same run."""

    recipe: str = ""
    """A recipe shipped with outpace (quickstart, gpt2_124M), or a TOML file: a set of flags."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    run: RunSettings = field(default_factory=RunSettings)


def flat(config: RunConfig) -> dict[str, Any]:
    """Field name -> value, the sections taken away. Names are unique over all sections."""
    values: dict[str, Any] = {}
    for name, value in asdict(config).items():
        values |= value if isinstance(value, dict) else {name: value}
    return values
