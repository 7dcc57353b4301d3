"""`outpace data WHAT`: look into a prepared dataset, or turn it into another trainer's format."""

from outpace.core.registry import Registry

ACTIONS = Registry(
    "data command", {"info": "outpace.cli.data_info", "export": "outpace.cli.data_export"}
)
HELP = """usage: outpace data WHAT [FLAGS]      (outpace data WHAT --help for its flags)

"""


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP + ACTIONS.help_lines(11), end="")
        return 0
    code: int = ACTIONS.load(argv[0]).run(argv[1:])
    return code
