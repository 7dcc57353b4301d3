"""Types of what tokenizers give; apart, so that they can be loaded before NumPy is."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint16]
"""Token ids as the shards hold them; every vocabulary here is below 2^16."""
Lengths = npt.NDArray[np.int64]
"""How many ids each of several texts has."""
