"""The table of formats that prepared shards are exported to, for other people's trainers. Each has
`export(dataset, output) -> list[Path]`, the files it wrote; a file has its name when it is whole.
"""

from outpace.core.registry import Registry

EXPORTS = Registry(
    "export format",
    {
        "nanogpt": "outpace.data.exports.nanogpt",
        "llmc": "outpace.data.exports.llmc",
        "megatron": "outpace.data.exports.megatron",
        "olmo": "outpace.data.exports.olmo",
        "huggingface": "outpace.data.exports.huggingface",
    },
)
