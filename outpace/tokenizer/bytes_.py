"""One id per UTF-8 byte, and 256 for end-of-text. For tests and toy models."""

import hashlib

import numpy as np

from outpace.tokenizer.ids import Ids, Lengths


class BytesTokenizer:
    """256 bytes and an end-of-text id."""

    name = "bytes"
    version = "1"
    vocab_size = 257
    end_of_text = 256
    vocab_sha256 = hashlib.sha256(bytes(range(256))).hexdigest()

    def __init__(self, engine: str = "") -> None:
        """`engine` is ignored: there is only one way to encode bytes."""

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes; a lone surrogate becomes `?`."""
        return list(text.encode("utf-8", "replace"))

    def encode_batch(self, texts: list[str]) -> tuple[Ids, Lengths]:
        parts = [text.encode("utf-8", "replace") for text in texts]
        ids = np.frombuffer(b"".join(parts), np.uint8).astype(np.uint16)
        return ids, np.array([len(part) for part in parts], np.int64)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: list[int]) -> bytes:
        return bytes(i for i in ids if i < 256)

    def token_bytes(self) -> list[int]:
        return [1] * 256 + [0]
