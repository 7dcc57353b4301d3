"""`outpace data WHAT`: look into a prepared dataset, or turn it into another trainer's format."""

from outpace.core.registry import Registry

ACTIONS = Registry(
    "data command", {"info": "outpace.cli.data_info", "export": "outpace.cli.data_export"}
)
HELP = """usage: outpace data WHAT [FLAGS]      (outpace data WHAT --help for its flags)

  info       documents, tokens, lengths, samples of the text, where most of it comes from
  export     shards to nanoGPT's, llm.c's, Megatron's, OLMo-core's or Hugging Face's format
"""


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    code: int = ACTIONS.load(argv[0]).run(argv[1:])
    return code
