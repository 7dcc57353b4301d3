"""The environment on which bit-identical results depend, and the versions of the software."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import outpace
from outpace.runtime.driver import cudnn_version
from outpace.runtime.hardware import Machine
from outpace.train.plan import Plan


def describe_environment(plan: Plan, machine: Machine) -> dict[str, Any]:
    """Everything except the run's settings on which bit-identical results depend."""
    return {
        "torch": torch.__version__,
        "device": machine.device_name,
        "threads": torch.get_num_threads(),
        "world_size": plan.world_size,
        "micro_batch_size": plan.micro_batch_size,
        "compile": plan.compile,
        "compile_mode": plan.compile_mode,
        "attention_kernel": plan.attention_kernel,
        "cross_entropy": plan.cross_entropy,
        "activation_checkpointing": plan.activation_checkpointing,
        "tf32": plan.tf32,
        "deterministic": plan.deterministic,
        "cuda": torch.version.cuda,
        "cudnn": cudnn_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the software that computes; in a checkout, also the git commit."""
    found = software() | {"python": platform.python_version()}
    for package in ("numpy", "tiktoken", "safetensors"):
        found[package] = metadata.version(package)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(cudnn_version())
    if commit := commit_of(Path(outpace.__file__).parent):
        found["git_commit"] = commit
    return found


def software() -> dict[str, str]:
    """The software that all processes of a run must have in common."""
    return {
        "outpace": outpace.__version__,
        "source": source_digest(),
        "torch": torch.__version__,
    }


def source_digest() -> str:
    """Digest of outpace's own code. A git commit does not cover later edits, and a copy without
    .git has none."""
    package = Path(outpace.__file__).parent
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(f"{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def commit_of(folder: Path) -> str | None:
    """The git commit of a checkout, with `-dirty` if files of it have changed since; None if git
    reports none."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            git, cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
