"""The formats that prepared shards can be exported to, for other people's trainers. Each has
`export(dataset, output) -> list[Path]`, the files it wrote; a file gets its name once it is whole.
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
