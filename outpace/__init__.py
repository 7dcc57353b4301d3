"""outpace: GPT-2 (124M) trained fast, with proof, and without ever losing a run."""

import os
import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # noqa: UP036 (before an older one meets what it cannot parse)
    sys.stderr.write(
        f"error[PYTHON]: outpace needs Python 3.11 or newer, and this is {sys.version.split()[0]}; "
        "do: run `make install PYTHON=python3.11` once, then `source .venv/bin/activate`\n"
    )
    sys.exit(2)
if os.name != "posix":
    sys.stderr.write("error[SYSTEM]: outpace needs Linux or macOS; do: on Windows, use it in WSL\n")
    sys.exit(2)
