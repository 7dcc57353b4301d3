"""`outpace COMMAND`: find the command, run it, turn errors into one line and an exit code."""

import sys

from outpace.core.errors import BUG, OutpaceError
from outpace.core.registry import Registry

COMMANDS = Registry(
    "command",
    {
        "train": "outpace.cli.train",
        "plan": "outpace.cli.plan",
        "prepare": "outpace.cli.prepare",
        "evaluate": "outpace.cli.evaluate",
        "sample": "outpace.cli.sample",
        "convert": "outpace.cli.convert",
        "report": "outpace.cli.report",
        "status": "outpace.cli.status",
        "verify": "outpace.cli.verify",
        "bench": "outpace.cli.bench",
    },
)

HELP = """usage: outpace COMMAND [FLAGS]      (outpace COMMAND --help for its flags)

  train      train GPT-2; the same command continues an interrupted run
  plan       what a training run would do, and why; starts nothing
  prepare    text to token shards: files, pydocs, hellaswag
  evaluate   validation loss and HellaSwag of a model
  sample     text from a model
  convert    to and from Hugging Face folders, checked logit for logit
  report     one self-contained HTML page about one or more runs
  status     where a run stands
  verify     check every hash of a run's checkpoints, or of a dataset
  bench      measurements: memory, compare

exit codes: 0 done, 1 bug, 2 usage, 3 data, 4 checkpoint, 5 storage, 6 numerics, 7 memory,
8 run folder in use, 9 peer lost, 10 network, 75 stopped and resumable, 130/143 second signal
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if argv[0] == "--version":
        from outpace import __version__

        print(__version__)
        return 0
    try:
        code: int = COMMANDS.load(argv[0]).run(argv[1:])
    except OutpaceError as error:
        from outpace.core.log import fail

        fail(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    return BUG if code is None else code


if __name__ == "__main__":
    sys.exit(main())
