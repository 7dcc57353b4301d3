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
USAGE = "outpace bench WHAT [FLAGS]      (outpace bench WHAT --help for its flags)"


def run(argv: list[str]) -> int:
    return BENCHES.dispatch(argv, USAGE, 12)
