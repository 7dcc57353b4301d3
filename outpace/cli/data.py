"""`outpace data WHAT`: inspect a prepared dataset, or export it to another trainer's format."""

from outpace.core.registry import Registry

ACTIONS = Registry(
    "data command", {"info": "outpace.cli.data_info", "export": "outpace.cli.data_export"}
)
USAGE = "outpace data WHAT [FLAGS]      (outpace data WHAT --help for its flags)"


def run(argv: list[str]) -> int:
    return ACTIONS.dispatch(argv, USAGE, 11)
