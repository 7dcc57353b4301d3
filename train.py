"""Train GPT-2: `python train.py --help`. The same as `outpace train`; works from a fresh clone."""

import sys

from outpace.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
