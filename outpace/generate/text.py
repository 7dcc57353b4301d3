"""Tokens as text while they come: never half a character, and nothing of a stop string."""

import codecs
from collections.abc import Sequence

from outpace.tokenizer import Tokenizer


class TextStream:
    """The text of one sample. `feed` gives what is certain so far, `finish` the rest."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        """Whether a stop string or the end of the text has come; then nothing more is said."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        """Characters that a stop string may begin with."""

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
        """What was held back; the bytes of a character that never came whole become U+FFFD."""
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
    """How many characters at the end of `text` a `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
