"""The folder for measurements and compiled code that later runs reuse. It may be deleted at any
time, and need not be writable.
"""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$OUTPACE_CACHE, else $XDG_CACHE_HOME/outpace, else ~/.cache/outpace; it need not exist."""
    if own := os.environ.get("OUTPACE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "outpace"
