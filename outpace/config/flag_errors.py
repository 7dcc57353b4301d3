"""What tyro says of wrong flags in a box, as the one line of the house."""

import re

from outpace.core.errors import UsageError

ELSEWHERE = {
    # nanoGPT
    "batch_size": "micro_batch_size", "block_size": "context", "dtype": "mixed_precision",
    "eval_interval": "eval_every_steps", "eval_iters": "val_tokens", "learning_rate": "lr",
    "log_interval": "log_every_steps", "lr_decay_iters": "max_steps", "max_iters": "max_steps",
    "min_lr": "min_lr_ratio", "out_dir": "run_dir", "start": "prompt",
    "warmup_iters": "warmup_steps", "decay_lr": "schedule",
    # Hugging Face's Trainer, and generate
    "adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "eps",
    "attn_implementation": "attention_backend", "bf16": "mixed_precision bf16",
    "dataset_name": "dataset", "ddp_timeout": "peer_timeout_minutes", "epochs": "max_tokens",
    "eval_steps": "eval_every_steps", "fp16": "mixed_precision fp16",
    "gradient_checkpointing": "activation_checkpointing block", "logging_steps": "log_every_steps",
    "lr_scheduler_type": "schedule", "max_grad_norm": "grad_clip",
    "max_length": "context/max_new_tokens", "max_seq_length": "context",
    "model_name_or_path": "init_from", "no_cuda": "device cpu",
    "num_return_sequences": "num_samples", "num_train_epochs": "max_tokens", "optim": "optimizer",
    "output_dir": "run_dir", "per_device_train_batch_size": "micro_batch_size",
    "resume_from_checkpoint": "resume", "save_steps": "save_every_steps",
    "save_total_limit": "keep_checkpoints", "torch_compile": "compile on", "train_file": "dataset",
    "use_cpu": "device cpu", "warmup_ratio": "warmup_steps",
    # llm.c, its train_gpt2.py and modded-nanogpt
    "b": "micro_batch_size", "c": "weight_decay", "d": "tokens_per_step", "e": "model_size",
    "i": "dataset", "input_bin": "dataset", "input_val_bin": "dataset", "j": "dataset",
    "k": "schedule", "l": "lr", "learning_rate_decay_frac": "min_lr_ratio", "m": "val_tokens",
    "n": "save_every_steps", "num_iterations": "max_steps", "o": "run_dir", "q": "min_lr_ratio",
    "s": "sample_every_steps", "sequence_length": "context", "t": "context",
    "tensorcores": "tf32 on", "total_batch_size": "tokens_per_step", "train_seq_len": "context",
    "u": "warmup_steps", "v": "eval_every_steps", "val_loss_every": "eval_every_steps",
    "val_max_steps": "val_tokens", "x": "max_steps", "y": "resume",
    # other commands of ours
    "hellaswag_limit": "limit",
}  # fmt: skip
"""What other programs, and other commands of ours, call a flag -> what is written here, or one or
the other, whichever a command knows."""
NOWHERE = {
    r"--(wandb_\w+|report_to|logging_dir)\b": "leave it out, as no tracker is called: "
    "the curves are in metrics.jsonl and `outpace report`",
    r"--(eval_only|do_eval)\b": "`outpace evaluate` does that",
    r"\S+\.py\b": "--recipe takes settings from a file, in TOML",
}
"""What of theirs is no flag here -> the remedy."""
FRAME = re.compile(r"^╭.*╮$|^╰.*╯$|^│ ?| ?│$", re.MULTILINE)
RULE = re.compile(r"^ *[─-]{20,} *$", re.MULTILINE)
"""Between the parts of a box. In ASCII it has no frame, and one under its title."""
MISSING = re.compile(r"^( *)Missing from (.*):")
SWITCHED = re.compile(r"Unrecognized options: (true|false|yes|no|on|off|0|1)", re.IGNORECASE)
TYPES = re.compile(
    r"Error parsing (--\w+): no type matching (\S+) could be instantiated from \[(.*)\]\."
)


def one_line(box: str, prog: str, known: set[str]) -> UsageError:
    """The error in a box of tyro's, with a remedy; `known` are the command's flags."""
    parts = RULE.split(FRAME.sub("", box))
    what, *rest = parts if "╭" in box else (*parts[1:], "")
    what = _missing(what) or " ".join(what.partition("Got errors:")[0].split())
    what = TYPES.sub(r"\1 takes \2, not \3", what).rstrip(".")
    near = next((part for part in rest if "you meant" in part), "")
    listed = re.findall(r"^ +(--.*)", near, re.MULTILINE)
    near_ones = [flag for line in listed for flag in re.findall(r"--\w+", line)]
    near_ones = [flag for flag in near_ones if flag[2:].removeprefix("no_") in known]
    meant = _called_here(what, known) or " or ".join(dict.fromkeys(near_ones))
    do = f"did you mean {meant}? See " if meant else ""
    if told := next((remedy for theirs, remedy in NOWHERE.items() if re.search(theirs, what)), ""):
        do = f"{told}; {do or 'see '}"
    if SWITCHED.fullmatch(what):
        do = "a switch takes no value: it is on as --NAME, off as --no_NAME. See "
    return UsageError("FLAGS", what or "they cannot be read", do=f"{do}{prog} --help")


def _called_here(what: str, known: set[str]) -> str:
    """What the flags of other programs in `what` are called here."""
    theirs = [f.replace("-", "_") for f in re.findall(r"(?<!\S)--?([a-z][\w-]*)", what)]
    names = [name for f in theirs for name in ELSEWHERE.get(f, "").split("/")]
    ours = [f"--{name}" for name in dict.fromkeys(names) if name.split(" ")[0] in known]
    return " and ".join(filter(None, [", ".join(ours[:-1]), *ours[-1:]]))


def _missing(part: str) -> str:
    """What a command lacks, by name alone: the help of each stands further to the right."""
    lines = part.strip("\n").splitlines()
    if not (found := MISSING.match(lines[0])):
        return ""
    indent = len(found[1]) + 4
    names = [x.strip() for x in lines[1:] if len(x) - len(x.lstrip()) == indent]
    return f"{found[2]} needs {' and '.join(names)}"
