"""Text to token ids and back. One table; every entry has the same few methods."""

from typing import TYPE_CHECKING, Protocol

from outpace.core.registry import Registry

if TYPE_CHECKING:
    from outpace.tokenizer.ids import Ids, Lengths

TOKENIZERS = Registry(
    "tokenizer",
    {
        "gpt2": "outpace.tokenizer.gpt2:Gpt2Tokenizer",
        "bytes": "outpace.tokenizer.bytes_:BytesTokenizer",
    },
)


class Tokenizer(Protocol):
    """Text to ids. `encode` never yields `end_of_text`: a literal one in the text is text."""

    name: str
    version: str
    vocab_size: int
    vocab_sha256: str
    end_of_text: int

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> "tuple[Ids, Lengths]":
        """The same ids as `encode`, of all texts, concatenated, and how many each has; used for
        whole corpora."""
        ...

    def decode(self, ids: list[int]) -> str: ...

    def decode_bytes(self, ids: list[int]) -> bytes: ...

    def token_bytes(self) -> list[int]:
        """How many bytes of text each id stands for; 0 for `end_of_text`."""
        ...


def get_tokenizer(name: str, engine: str = "tiktoken") -> Tokenizer:
    """Return the tokenizer of that name; UsageError names the nearest one. `engine` is the library
    that encodes: `tiktoken` loads quickly; `fastokens` (`auto` takes it if installed) is far
    faster. Both give the same ids."""
    tokenizer: Tokenizer = TOKENIZERS.load(name)(engine)
    return tokenizer
