"""The device that a process computes on."""

import torch

from outpace.core.errors import UsageError
from outpace.core.log import warn
from outpace.runtime.cpu_memory import keep_memory, use_huge_pages
from outpace.runtime.driver import unusable_gpu


def choose_device(asked: str, local_rank: int) -> torch.device:
    """The device of this process, made ready: a GPU becomes PyTorch's current one, and on a CPU
    memory is managed as in `cpu_memory.py`. `asked` is auto, cpu or cuda. UsageError when a GPU was
    asked for and there is none, or fewer than processes."""
    if asked != "cpu" and torch.cuda.is_available():
        if local_rank >= (gpus := torch.cuda.device_count()):
            raise UsageError(
                "TOO-FEW-GPUS",
                f"process {local_rank} of this host has no GPU of its own: there are {gpus}",
                do=f"start at most {gpus} processes per host, or add --device cpu",
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if asked != "cpu":
        why_not = unusable_gpu()
        if asked == "cuda":
            what, do = why_not or ("PyTorch sees no GPU", "--device cpu")
            raise UsageError("NO-GPU", f"--device cuda, but {what}", do=do)
        if why_not and local_rank == 0:
            what, do = why_not
            warn(f"this runs on the CPU; there is a GPU, but {what}: {do}, or add --device cpu")
    use_huge_pages()
    keep_memory()
    return torch.device("cpu")
