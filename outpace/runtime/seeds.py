"""Randomness as a function of its place, so that there is no generator state to lose.

Dropout of a micro-step is seeded by (seed, step, its place in the global batch): the same whether
the run was interrupted, evaluated in between, or spread over a different number of processes.
"""

import hashlib

import torch


def derive(seed: int, *where: int | str) -> int:
    """A 63-bit seed from the run's seed and a place."""
    text = ":".join(map(str, (seed, *where)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_micro_step(seed: int, step: int, position: int) -> None:
    """Seed torch for the micro-step at `position` of the global batch of `step`."""
    torch.manual_seed(derive(seed, "dropout", step, position))


def generator(seed: int, *where: int | str) -> torch.Generator:
    """A CPU generator for `where` alone."""
    return torch.Generator().manual_seed(derive(seed, *where))
