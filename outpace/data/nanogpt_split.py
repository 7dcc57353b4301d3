"""nanoGPT's validation split of OpenWebText, without the `datasets` library.

Its prepare.py calls `train_test_split(test_size=0.0005, seed=2357, shuffle=True)`, which permutes
all documents with NumPy's default generator and takes the first ceil(0.0005 n) for validation
(huggingface/datasets, Dataset.train_test_split). Both files are written in permuted order.
"""

import math

import numpy as np

from outpace.data.arrays import Int64

SEED, FRACTION = 2357, 0.0005


def order(documents: int) -> tuple[Int64, Int64]:
    """Source numbers of the training and the validation documents, in nanoGPT's order."""
    permuted = np.random.default_rng(SEED).permutation(documents)
    held_out = math.ceil(FRACTION * documents)
    return permuted[held_out:], permuted[:held_out]


def held_out(documents: int) -> Int64:
    """Source numbers of the validation documents, sorted."""
    return np.sort(order(documents)[1])
