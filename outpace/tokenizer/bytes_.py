"""One id a UTF-8 byte, and 256 for the end of a text. For tests and toy models."""

import hashlib

import numpy as np

from outpace.tokenizer import Ids


class BytesTokenizer:
    """256 bytes and an end-of-text id."""

    name = "bytes"
    version = "1"
    vocab_size = 257
    end_of_text = 256
    vocab_sha256 = hashlib.sha256(bytes(range(256))).hexdigest()

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes; a lone surrogate becomes `?`."""
        return list(text.encode("utf-8", "replace"))

    def encode_array(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint16)

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self) -> list[int]:
        return [1] * 256 + [0]
