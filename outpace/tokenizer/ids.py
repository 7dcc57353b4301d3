"""The array types of token ids; in a module of their own so that tokenizers load before NumPy."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint16]
"""Token ids as stored in shards; every vocabulary here is smaller than 2^16."""
Lengths = npt.NDArray[np.int64]
"""Number of ids of each of several texts."""
