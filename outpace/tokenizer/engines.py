"""The libraries for GPT-2's encoding, each behind the same `encode_batch`.

`fastokens` is fast (19 times tiktoken on one core) and young, so it is checked: at loading against
golden ids, during preparation against tiktoken. `tiktoken` is OpenAI's own, the reference.
"""

import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata, util
from typing import TYPE_CHECKING, Protocol

from outpace.core.errors import UsageError
from outpace.core.log import warn
from outpace.tokenizer.golden import GOLDEN_SHA256, golden_texts

if TYPE_CHECKING:
    import tiktoken

    from outpace.tokenizer.ids import Ids, Lengths


class Engine(Protocol):
    """One library. UnicodeEncodeError for text with lone surrogates."""

    version: str

    def encode_batch(self, texts: list[str]) -> "tuple[Ids, Lengths]":
        """Ids of all texts, concatenated, and how many each has. Releases the GIL."""
        ...


class Tiktoken:
    """tiktoken's Rust encoder, one text after another."""

    def __init__(self, encoding: "tiktoken.Encoding") -> None:
        self.version = "tiktoken-" + metadata.version("tiktoken")
        self._encoding = encoding

    def encode_batch(self, texts: list[str]) -> "tuple[Ids, Lengths]":
        import numpy as np

        encode = self._encoding.encode_to_numpy
        parts = [encode(text, disallowed_special=()).astype(np.uint16) for text in texts]
        lengths = np.array([len(part) for part in parts], np.int64)
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16), lengths


class Fastokens:
    """fastokens' Rust encoder over the same vocabulary, without added tokens, so that a literal
    `<|endoftext|>` is text. Its pre-tokeniser is Hugging Face's `ByteLevel`, whose Unicode tables
    match tiktoken's (its own `from_tiktoken` differs at U+180E)."""

    def __init__(self, vocab: str, merges: list[str]) -> None:
        # Read at import. Its own threads would cost half as much CPU time again; we have our own.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        from fastokens import Tokenizer

        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        model: dict[str, object] = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {}, "merges": merges,
        }  # fmt: skip
        definition: dict[str, object] = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": level | {"use_regex": True},
            "post_processor": None, "decoder": level | {"use_regex": True}, "model": model,
        }  # fmt: skip
        filled = json.dumps(definition).replace('"vocab": {}', f'"vocab": {vocab}', 1)
        self._tokenizer = Tokenizer.from_json_str(filled)
        self.version = "fastokens-" + metadata.version("fastokens")

    def encode_batch(self, texts: list[str]) -> "tuple[Ids, Lengths]":
        import numpy as np  # late: the vocabulary loads first, and outside Python

        ids, offsets = self._tokenizer.encode_batch_flat(texts)
        return (
            np.frombuffer(ids, "<u4").astype(np.uint16),
            np.diff(np.frombuffer(offsets, "<u8")).astype(np.int64),
        )


def fault(engine: Engine) -> str | None:
    """Run an engine on the golden texts; return what is wrong, or None."""
    try:
        ids, lengths = engine.encode_batch(golden_texts())
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        return f"{type(error).__name__}: {error}"
    digest = hashlib.sha256(ids.astype("<u2").tobytes() + lengths.astype("<i8").tobytes())
    return None if digest.hexdigest() == GOLDEN_SHA256 else "its ids are not GPT-2's"


def choose(name: str) -> str:
    """The engine meant by `name`, which may be `auto`. UsageError if it is not installed."""
    have_fastokens = util.find_spec("fastokens") is not None
    if name == "auto":
        return "fastokens" if have_fastokens else "tiktoken"
    if name == "fastokens" and not have_fastokens:
        raise UsageError(
            "NOT-INSTALLED", "fastokens is not installed", do="pip install 'outpace[fast]'"
        )
    return name


Definition = tuple[str, list[str]]
"""Ids of the ordinary tokens as JSON, and the merges in order."""


def load(
    name: str, encoding: "Callable[[], tiktoken.Encoding]", definition: Callable[[], Definition]
) -> Engine:
    """Load an engine; if fastokens fails its self-test, tiktoken with a warning."""
    if choose(name) == "tiktoken":
        return Tiktoken(encoding())
    try:
        fast = Fastokens(*definition())
        wrong = fault(fast)
    except (ImportError, AttributeError, ValueError, RuntimeError, TypeError) as error:
        wrong = f"it does not load ({type(error).__name__}: {error})"
    if wrong is None:
        return fast
    warn(
        f"fastokens fails its self-test ({wrong}); continuing with tiktoken, which is right but "
        "some 19 times slower. `pip install 'outpace[fast]'` installs the version that was checked"
    )
    return Tiktoken(encoding())
