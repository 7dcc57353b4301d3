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
        "compare": "outpace.cli.bench_compare",
        "generate": "outpace.cli.bench_generate",
        "prepare": "outpace.cli.bench_prepare",
        "evaluate": "outpace.cli.bench_evaluate",
    },
)
HELP = """usage: outpace bench WHAT [FLAGS]      (outpace bench WHAT --help for its flags)

  ladder     from naive to fast, one setting at a time: what each is worth here
  kernels    sustained products, copies, attention, cross-entropy and AdamW of this machine
  profile    where the time of one training step goes, against its floor
  memory     peak memory, predicted and counted; attention's against the length
  loader     batches from the cache, and the order they come in, beside nanoGPT's get_batch
  compare    outpace against peers' own code, interleaved on this machine
  generate   generation beside transformers' generate, with the tokens compared
  prepare    text to tokens, against nanoGPT's own script on the same documents
  evaluate   HellaSwag's speed and answers beside build-nanogpt's script and lm-eval
"""


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    code: int = BENCHES.load(argv[0]).run(argv[1:])
    return code
