"""`outpace bench WHAT`: measurements, each one JSON file."""

from outpace.core.registry import Registry

BENCHES = Registry(
    "benchmark",
    {
        "ladder": "outpace.cli.bench_ladder",
        "kernels": "outpace.cli.bench_kernels",
        "profile": "outpace.cli.bench_profile",
        "memory": "outpace.cli.bench_memory",
        "loader": "outpace.cli.bench_loader",
        "optimizers": "outpace.cli.bench_optimizers",
        "compare": "outpace.cli.bench_compare",
        "generate": "outpace.cli.bench_generate",
        "prepare": "outpace.cli.bench_prepare",
        "evaluate": "outpace.cli.bench_evaluate",
    },
)
HELP = """usage: outpace bench WHAT [FLAGS]      (outpace bench WHAT --help for its flags)

"""


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP + BENCHES.help_lines(12), end="")
        return 0
    code: int = BENCHES.load(argv[0]).run(argv[1:])
    return code
