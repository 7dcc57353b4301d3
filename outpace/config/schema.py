"""Every setting of a training run, with its unit and default: the flags of `outpace train`.

A value of `auto` is soft: the plan chooses it. Any other value, from a flag or a
recipe, is hard: it is obeyed or refused, never changed.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from outpace.config.presets import VOCAB_MULTIPLE
from outpace.config.ranges import Range

Auto = Literal["auto"]
STEPS = Range(0, 1_000_000_000)
HELLASWAG_PATH = "data/hellaswag/hellaswag_val.jsonl"
"""Where `outpace prepare hellaswag` leaves the questions."""


@dataclass
class ModelConfig:
    """GPT-2's size and shape."""

    model_size: str = "124M"
    """Published size: 124M, 355M (or 350M), 774M or 1558M."""
    n_layer: Annotated[int | Auto, Range(1, 1000)] = "auto"
    """Layers. auto: the size's own, 12 for 124M."""
    n_head: Annotated[int | Auto, Range(1, 1000)] = "auto"
    """Attention heads; must divide n_embd. auto: the size's own, 12 for 124M."""
    n_embd: Annotated[int | Auto, Range(1, 100_000)] = "auto"
    """Channels (C). auto: the size's own, 768 for 124M."""
    context: Annotated[int, Range(1, 1_000_000)] = 1024
    """Tokens in a sequence (T); at most 1024 with GPT-2's own weights."""
    dropout: Annotated[float, Range(0, 0.9999)] = 0.0
    """Probability of dropping an activation; 0 is usual for pre-training."""
    vocab_multiple: Annotated[int, Range(1, 4096)] = VOCAB_MULTIPLE
    """Pad the vocabulary to a multiple of this, for the tensor cores; 1: no padding."""
    init_from: str = ""
    """Start from these weights: a run, hf:NAME, or any other MODEL of `outpace evaluate`; and take
    their shape unless flags say otherwise. Empty: random weights."""


@dataclass
class DataConfig:
    """What to train on."""

    dataset: str = "auto"
    """A folder that `outpace prepare` made, or the name of one below data/. A,B mixes several in
    proportion to their sizes, A:0.7,B:0.3 in these proportions.
    auto: openwebtext if it is prepared, else pydocs, the documentation inside this Python."""
    order_chunk: Annotated[int, Range(1, 1_000_000)] = 1
    """Consecutive sequences to read before the order jumps elsewhere in the data: 1 shuffles best,
    64 suits hard disks and network file systems."""
    phase: bool = True
    """Shift the borders of the sequences from epoch to epoch, so that no text is always cut at the
    same places."""
    bos_aligned: bool = False
    """Begin each sequence with a new document. The rest of a document that is too long is not read;
    the plan says how much of the text this leaves out."""
    document_mask: bool = False
    """Keep tokens from attending to earlier documents in their sequence."""


@dataclass
class BatchConfig:
    """tokens_per_step = micro_batch_size x context x gradient_accumulation_steps x processes."""

    gradient_accumulation_steps: Annotated[int | Auto, Range(1, 1_000_000)] = "auto"
    """Micro-batches that each process sums before an optimiser step.
    auto: what reaches tokens_per_step."""
    micro_batch_size: Annotated[int | Auto, Range(1, 1_000_000)] = "auto"
    """Sequences in one forward and backward pass of one process.
    auto: what fits in memory."""
    tokens_per_step: Annotated[int | Auto, Range(1, 1_000_000_000)] = "auto"
    """Tokens in an optimiser step, over all processes, whatever the number of GPUs.
    auto: 524,288, as far as the other two flags allow."""


@dataclass
class ScheduleConfig:
    """How long to train, and the learning rate on the way."""

    max_steps: Annotated[int | Auto, Range(1, 1_000_000_000)] = "auto"
    """Optimiser steps in all. With max_tokens: whichever ends first, but a flag overrides a recipe.
    auto: as many as max_tokens gives."""
    max_tokens: Annotated[int | Auto, Range(1, 10**15)] = "auto"
    """Tokens in all; 10B is 10 billion.
    auto: 10 billion, but at most 4 passes over the dataset."""
    max_hours: Annotated[float | Auto, Range(0, 100_000, above=True)] = "auto"
    """Hours after which to save and stop, resumable, with exit code 75.
    auto: no limit."""
    lr: Annotated[float | Auto, Range(0, 100, above=True)] = "auto"
    """Peak learning rate.
    auto: GPT-3's for the size (6e-4 for 124M), times the size's channels over the model's; less for
    smaller batches, by their fourth root; a tenth of this with --init_from."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Learning rate after warm-up; constant, or:
    cosine: down to min_lr_ratio over the run.
    wsd: constant, then a linear cool-down to min_lr_ratio."""
    warmup_steps: Annotated[int | Auto, STEPS] = "auto"
    """Steps of linear warm-up.
    auto: 4 % of the run, at most 700."""
    min_lr_ratio: Annotated[float, Range(0, 1)] = 0.1
    """Last learning rate as a share of the peak, for cosine and wsd."""
    decay_fraction: Annotated[float, Range(0, 1)] = 0.2
    """Share of the steps that wsd spends cooling down."""


@dataclass
class OptimizerConfig:
    """The update."""

    optimizer: str = "adamw"
    """Name of an optimiser: adamw, one fused kernel; adamw_foreach, PyTorch's default; muon, for
    the matrices of the blocks, at adamw's learning rate, with adamw for the rest."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.1
    """Decay of all matrices, embeddings included; never of biases and LayerNorm gains."""
    beta1: Annotated[float, Range(0, 0.999999)] = 0.9
    """Decay rate of the first moment; muon's own is 0.95."""
    beta2: Annotated[float, Range(0, 0.99999999)] = 0.95
    """Decay rate of the second moment."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    """Added to the root of the second moment."""
    grad_clip: Annotated[float, Range(0, 1e6)] = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""


@dataclass
class ComputeConfig:
    """How the arithmetic is done."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Type of matrix products; no is fp32. Weights and moments are always fp32.
    auto: bf16 where it is fast, else fp16 on a GPU and fp32 on a CPU."""
    use_flash_attention: bool = True
    """Use attention that never stores the T x T matrix. If no kernel can: an error if this flag was
    given, else a warning."""
    tf32: Literal["auto", "on", "off"] = "auto"
    """TF32 tensor cores for fp32 products on a GPU, 10 bits of mantissa.
    auto: on with mixed precision, where few fp32 products remain."""
    attention_backend: str = "auto"
    """Name of an attention kernel: sdpa lets PyTorch choose among cudnn, flash and efficient, its
    fused ones; flex; flash_attn (the package); eager, reference (in fp32) and math store the T x T
    matrix.
    auto: with use_flash_attention on a GPU the fastest, measured once, on a CPU sdpa; without it
    reference."""
    cross_entropy: str = "auto"
    """Name of a cross-entropy kernel: eager, compiled (fused by the compiler), chunked (least
    memory), triton (in place), linear (PyTorch's own, from 2.13 on).
    auto: on a GPU the fastest, measured once; else chunked."""
    bf16_residual: Literal["auto", "on", "off"] = "auto"
    """Keep the residual stream in bf16 instead of fp32: less memory traffic.
    auto: with bf16."""
    activation_checkpointing: Literal["none", "gelu", "block"] = "none"
    """What the backward pass recomputes to save memory.
    gelu: the output of GELU. block: all but the input of each block; a third more work."""
    fp8_head: bool = False
    """Compute the output head in fp8, on GPUs that have it (on a CPU: slowly, to try it out).
    Changes the numerics."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the model, and of the loss where that helps.
    auto: where a probe compiles, unless a CPU run is too short to repay it."""
    compile_mode: Literal["default", "tuned"] = "default"
    """tuned: the compiler tries several kernels for every product, which takes minutes, once per
    machine."""
    deterministic: Literal["auto", "on", "off"] = "auto"
    """Use only kernels that give the same bits each time, so that a resumed run does too.
    auto: on a CPU, where it costs little; off on a GPU, where it costs speed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train.
    auto: the GPU if there is one."""


@dataclass
class EvalConfig:
    """What is measured while training, and at its end."""

    eval_every_steps: Annotated[int | Auto, STEPS] = "auto"
    """Steps between validation losses; 0: at the end only.
    auto: 20 times a run."""
    val_tokens: Annotated[int | Auto, Range(1, 10**12)] = "auto"
    """Tokens of the validation split to score, always the first ones.
    auto: 10,485,760 on a GPU; on a CPU what it scores in seconds."""
    hellaswag_every_steps: Annotated[int, STEPS] = 0
    """Steps between HellaSwag scores; 0: at the end only."""
    hellaswag_limit: Annotated[int | Auto, Range(0, 1_000_000_000)] = "auto"
    """HellaSwag questions to score; 0: none.
    auto: all 10,042 on a GPU, 500 on a CPU."""
    hellaswag_path: str = HELLASWAG_PATH
    """The questions, as `outpace prepare hellaswag` leaves them. No such file: not scored, or an
    error if a flag asks for HellaSwag."""
    hellaswag_protocol: Literal["completion", "harness", "both"] = "completion"
    """completion: raw text, normalised by tokens. harness: as lm-eval renders it, by characters."""
    eval_time_share: Annotated[float, Range(0, 1000)] = 0.1
    """Share of the training time that evaluations may take if --eval_every_steps is auto; 20
    seconds are always allowed."""
    sample_every_steps: Annotated[int, STEPS] = 0
    """Steps between generated samples; 0: at the end only."""
    sample_prompt: str = "The"
    """Prompt of the samples."""
    sample_tokens: Annotated[int, Range(0, 1_000_000)] = 64
    """Tokens in a sample; 0: no samples."""


@dataclass
class RunSettings:
    """The run folder, and what goes into it."""

    run_dir: str = "auto"
    """The run's folder.
    auto: runs/SIZE-DATASET-HASH, so that the same command finds its own run again."""
    resume: str = "auto"
    """auto: continue the run in the run folder, if there is one.
    never: refuse a folder that holds a run.
    a path: continue from that checkpoint."""
    strict_resume: bool = False
    """Refuse to continue, instead of warning, if equal bits cannot be promised (another machine,
    thread count or torch)."""
    save_every_steps: Annotated[int | Auto, STEPS] = "auto"
    """Steps between checkpoints; 0: at the end only.
    auto: a tenth of the run, at most 1,000."""
    keep_checkpoints: Annotated[int, Range(2, 1_000_000)] = 2
    """How many checkpoints to keep, the newest that verify; at least 2."""
    milestone_every_steps: Annotated[int, STEPS] = 0
    """Never delete a checkpoint whose step is a multiple of this; 0: none."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest validation loss."""
    async_save: bool = True
    """Write checkpoints in the background; training waits only for a copy in memory."""
    space_check: bool = True
    """Refuse to start if the disk has no room for the checkpoints that will be kept."""
    log_every_steps: Annotated[int | Auto, Range(1, 1_000_000_000)] = "auto"
    """Steps between lines in metrics.jsonl.
    auto: 10 on a GPU, 1 on a CPU."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 1337
    """Decides weights, data order and dropout."""


@dataclass
class SafetyConfig:
    """How to handle bad numbers, hangs and lost processes."""

    guard: bool = True
    """Skip updates that are not finite, detect spikes and hangs, and compare the processes'
    weights. Turn this off only to measure its cost."""
    max_skipped_steps: Annotated[int | Auto, Range(1, 1_000_000)] = "auto"
    """Steps in a row that may be skipped before the run rolls back to an older checkpoint and skips
    the data in between. auto: 5; 30 with fp16, whose loss scale has to settle."""
    max_rollbacks: Annotated[int, Range(0, 1000)] = 2
    """Rollbacks before the run stops with exit code 6."""
    spike_threshold: Annotated[float, Range(0, 1e9)] = 20.0
    """A loss or gradient norm this many robust deviations (1.4826 MAD) above the median of the last
    128 steps is a spike: recorded, its batch saved. 0: off."""
    skip_spikes: bool = False
    """Also skip the updates of spikes."""
    watchdog_minutes: Annotated[float, Range(0, 100_000)] = 30.0
    """A step, evaluation or save that takes longer ends the run with exit code 9; after half that
    time the stacks of all threads are written to the run folder. 0: off."""
    peer_timeout_minutes: Annotated[float, Range(0, 100_000, above=True)] = 10.0
    """Minutes to wait for another process before it counts as lost."""


@dataclass
class RunConfig:
    """Train GPT-2. The same flags in the same folder continue the same run."""

    recipe: str = ""
    """Values from a shipped recipe (quickstart, gpt2_124M, gpt2_124M_edu), or a TOML file such as
    config.toml. Other flags override them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    run: RunSettings = field(default_factory=RunSettings)
    safety: SafetyConfig = field(default_factory=SafetyConfig)


def flat(config: RunConfig) -> dict[str, Any]:
    """Field name -> value, the sections taken away. Names are unique over all sections."""
    values: dict[str, Any] = {}
    for name, value in asdict(config).items():
        values |= value if isinstance(value, dict) else {name: value}
    return values
