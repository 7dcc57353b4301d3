"""Decoding tokens as they come: never half a character, and no part of a stop string."""

import codecs
from collections.abc import Sequence

from outpace.tokenizer import Tokenizer


class TextStream:
    """The text of one sample. `feed` returns the text that is certain so far, `finish` the rest."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        """Whether a stop string or end-of-text was reached; after that all output is empty."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        """Characters held back because a stop string may begin with them."""

    def feed(self, token: int) -> str:
        """Take one token; return the characters that are complete and belong to the text."""
        if self.stopped:
            return ""
        if token == self.tokenizer.end_of_text:
            text = self.finish()
            self.stopped = True
            return text
        return self._take(self._decoder.decode(self.tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """The text that was held back; bytes of an incomplete character become U+FFFD."""
        if self.stopped:
            return ""
        text = self._take(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _take(self, new: str) -> str:
        text = self._held + new
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
