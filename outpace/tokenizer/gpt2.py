"""GPT-2's byte-pair encoding, offline: OpenAI's two vocabulary files ship with the package, and
their hashes are checked on loading. The libraries that encode are in engines.py.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from outpace.core.errors import DataError
from outpace.tokenizer.engines import load

if TYPE_CHECKING:
    import tiktoken

    from outpace.tokenizer.ids import Ids, Lengths

VOCAB_FOLDER = Path(__file__).parent / "gpt2_vocab"
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
"""OpenAI's published hashes, as in tiktoken's own openai_public.py."""

SPLIT_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
"""GPT-2's pre-tokeniser (openai/gpt-2, src/encoder.py) in tiktoken's spelling, which backtracks
less (tiktoken_ext/openai_public.py, r50k_pat_str)."""

END_OF_TEXT = "<|endoftext|>"

PART_CHARACTERS = 1 << 16
"""Longer texts are encoded in parts of about this size, which bounds memory and keeps long runs of
white space from overflowing the stack of tiktoken's regex engine (at some 500,000 spaces)."""
PARTS = 32
"""Parts encoded at once: an engine's own arrays take 4 bytes per id."""
LONGEST_RUN = 1 << 17
"""A part without a word end is cut at this length. Only then may the ids differ from those of an
encoder without limits."""

_WORD_END = re.compile(r"\S(?=[ \n])|[^\W\d_](?=[，。、！？；：])")
"""Where GPT-2's pre-tokeniser always cuts: none of its alternatives continues from anything else to
white space, nor from a letter to punctuation."""


class Gpt2Tokenizer:
    """50,257 ids: 50,256 byte-pair tokens and `<|endoftext|>` (50256)."""

    name = "gpt2"
    vocab_size = 50257
    end_of_text = 50256
    vocab_sha256 = ENCODER_SHA256

    def __init__(self, engine: str = "tiktoken") -> None:
        self._engine = load(engine, _encoding, _definition)
        self.version = self._engine.version

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; lone surrogates become U+FFFD."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: list[str]) -> "tuple[Ids, Lengths]":
        """Ids of all texts, concatenated, and how many each has. Releases the GIL."""
        if max(map(len, texts), default=0) <= PART_CHARACTERS:
            return self._encode(texts)
        import numpy as np

        parts = [list(_parts(text)) for text in texts]
        flat = [part for text in parts for part in text]
        encoded = [self._encode(flat[n : n + PARTS]) for n in range(0, len(flat), PARTS)]
        ids, lengths = (np.concatenate(arrays) for arrays in zip(*encoded, strict=True))
        first = np.cumsum([0, *map(len, parts[:-1])])
        return ids, np.add.reduceat(lengths, first)

    def _encode(self, texts: list[str]) -> "tuple[Ids, Lengths]":
        try:
            return self._engine.encode_batch(texts)
        except UnicodeEncodeError:
            return self._engine.encode_batch([without_lone_surrogates(text) for text in texts])

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return _encoding().decode(ids)

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Bytes of `ids`; a token may be a part of a character."""
        return _encoding().decode_bytes(ids)

    def token_bytes(self) -> list[int]:
        ordinary = _encoding().decode_tokens_bytes(list(range(self.end_of_text)))
        return [len(token) for token in ordinary] + [0]


def without_lone_surrogates(text: str) -> str:
    """Replace lone halves of surrogate pairs with U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parts(text: str) -> Iterator[str]:
    """Cut a long text at word ends; a short text, even an empty one, is a single part."""
    at = 0
    while len(text) - at > PART_CHARACTERS:
        limit = at + LONGEST_RUN
        end = _WORD_END.search(text, at + PART_CHARACTERS - 1, limit + 1)
        cut = end.end() if end else min(limit, len(text))
        yield text[at:cut]
        at = cut
    if at < len(text) or not text:
        yield text[at:]


def vocabulary() -> dict[str, int]:
    """The id of every token, spelt in the printable stand-in characters of OpenAI's
    encoder.json."""
    tokens: dict[str, int] = json.loads(_checked("encoder.json", ENCODER_SHA256))
    return tokens


def merges() -> list[str]:
    """The pairs of tokens in merge order, each as two tokens with a space between."""
    lines = _checked("vocab.bpe", MERGES_SHA256).decode("utf-8").split("\n")[1:]
    return [line for line in lines if line]


_building = threading.Lock()


def _encoding() -> "tiktoken.Encoding":
    with _building:  # else two threads would both build it
        return _built()


@cache
def _built() -> "tiktoken.Encoding":
    import tiktoken

    bytes_of = {ord(character): byte for character, byte in _byte_of_character().items()}
    tokens = json.loads(_definition()[0])
    ranks = {token.translate(bytes_of).encode("latin-1"): rank for token, rank in tokens.items()}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: Gpt2Tokenizer.end_of_text},
        explicit_n_vocab=Gpt2Tokenizer.vocab_size,
    )


def _definition() -> tuple[str, list[str]]:
    """Ids of the ordinary tokens as JSON, and the merges. The last entry of encoder.json,
    `<|endoftext|>`, is cut off: it is not an ordinary token."""
    encoder = _checked("encoder.json", ENCODER_SHA256).decode("utf-8")
    return encoder[: encoder.rindex(",")] + "}", merges()


def _checked(file: str, sha256: str) -> bytes:
    path = VOCAB_FOLDER / file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            "VOCABULARY",
            f"cannot read the vocabulary file {path}: {error.strerror}",
            do="reinstall outpace",
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            "VOCABULARY", f"the vocabulary file {path} is not OpenAI's", do="reinstall outpace"
        )
    return data


def _byte_of_character() -> dict[str, int]:
    """From the printable stand-in characters of encoder.json to the bytes they stand for
    (openai/gpt-2, src/encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
