"""The environment on which bit-identical results depend, and the versions of the software."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import outpace
from outpace.core.files import sha256_file, sha256_json
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
    found = {"outpace": outpace.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "tiktoken", "safetensors"):
        found[package] = metadata.version(package)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(cudnn_version())
    if commit := commit_of(Path(outpace.__file__).parent):
        found["git_commit"] = commit
    return found


def software() -> dict[str, str]:
    """The code that several processes must have in common, for which a version is not enough: a
    checkout may be at another commit, or have changes."""
    package = Path(outpace.__file__).parent
    sources = sorted(path.relative_to(package) for path in package.rglob("*.py"))
    digest = sha256_json([[str(path), sha256_file(package / path)] for path in sources])
    return {
        "outpace": f"{outpace.__version__} (code {digest[:8]})",
        "torch": torch.__version__,
    }


def commit_of(folder: Path) -> str | None:
    """The git commit of a checkout; None if git reports none."""
    git = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
