"""Texts with known ids, which an encoder must reproduce before it is trusted with a corpus."""

GOLDEN_SHA256 = "1b240ed6e3a18587059aa72b7f0fe02cf12ffa5d9ec856fb460a54275fe6b157"
"""SHA-256 of the ids (uint16) and lengths (int64) of `golden_texts()`. A test recomputes it with a
byte-pair encoder written from openai/gpt-2's encoder.py."""

SPACES = (
    " ", "  ", "\t", "\n", "\r\n", "\n\n", " \n", "\u00a0", "\u2009", "\u3000", "\u180e", "\x1c",
)  # fmt: skip
WORDS = (
    "the", "The", "don't", "I'LL", "we've", "naïve", "Straße", "漢字", "한국어", "Привет", "שלום",
    "مرحبا", "नमस्ते", "ไทย", "Ωμέγα", "e\u0301", "😀", "👩\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈",
    "x86_64", "3.14159", "١٢٣", "²½Ⅷ", "<|endoftext|>", "https://example.org/?q=a%20b&c=d#e",
    "\ufffd", "\ufeff", "\x00", "\x7f", "𝒜𝓁𝓅", "\U0010ffff",
)  # fmt: skip
SENTENCES = (
    "",
    "It was the best of times, it was the worst of times,\nit was the age of wisdom...",
    "def f(x: int) -> str:\n    return f'{x!r}'  # ok\n\n\nclass A:\n\tpass\n",
    "I'm, you're, he's, we've, they'll, I'd, don't; DON'T, I'M; 'tis 's 'll''ve'''re",
    "a" * 300,
    "ab" * 150,
    " " * 300 + "x",
    "\n" * 50 + "\t" * 50,
    "=-" * 100,
    "1234567890" * 20,
)


def golden_texts() -> list[str]:
    """All texts: sentences, each word alone, and each word between each kind of white space."""
    between = [f"{space}{word}{space}{word}." for word in WORDS for space in SPACES]
    return [*SENTENCES, *WORDS, *between]
