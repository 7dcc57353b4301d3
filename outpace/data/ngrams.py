"""Finding documents that share a run of words with a benchmark: word n-grams, found by hash, then
confirmed word for word.

A word is a run of letters and digits, lower-cased; everything else separates words, so case,
punctuation and spacing do not hide an overlap. Thirteen consecutive words are what GPT-3 counted as
an overlap (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C).

The hash of an n-gram is a polynomial modulo 2^64 over its words' hashes, each a polynomial over the
word's bytes. Both come from prefix sums: the sum over a range, times the inverse power of the
range's start (the base is odd, so it has an inverse). A bit table lets about one n-gram in a
hundred through to the exact search.
"""

import bisect
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache

import numpy as np

from outpace.data.arrays import Int64, UInt8, UInt64

NGRAM_WORDS = 13
PIECE_BYTES = 1 << 16
"""Bytes hashed at once; bounds memory to about 3 MB beyond the text, whatever a document's
length."""
BITS_AN_NGRAM = 64
"""Minimum size of the bit table: 1 in 64 n-grams passes it by chance."""
_BYTE_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD1342543DE82EF95
"""Odd numbers with well-spread bits (the golden ratio's; Steele and Vigna 2021, table 5)."""
_MIX = np.uint64(0xFF51AFD7ED558CCD)
"""MurmurHash3's finaliser (aappleby/smhasher, fmix64)."""
_SEPARATOR = 0
_BORDER = bytes([_SEPARATOR])
_FOLD = bytes(
    b | 0x20 if 65 <= b <= 90 else b if b >= 128 or chr(b).isalnum() else _SEPARATOR
    for b in range(256)
)
"""Maps UTF-8 bytes: ASCII letters to lower case, digits and the bytes of other letters to
themselves, the rest to the separator."""
_OTHERS = re.compile("[^\x00-\x7f]+")


class NgramIndex:
    """The numbered n-grams of a benchmark's passages, to be looked up in documents."""

    def __init__(self, passages: Iterable[tuple[str, str]], n: int = NGRAM_WORDS) -> None:
        """`passages` are (name, text); several may share a name, such as the parts of a
        question."""
        assert n >= 2
        self.n = n
        pairs = [(name, _folded(text)) for name, text in passages]
        self.names = list(dict.fromkeys(name for name, _ in pairs))
        """Without repeats, in the order given."""
        number = {name: i for i, name in enumerate(self.names)}
        self._text = _BORDER.join(text for _, text in pairs)
        borders = _borders([text for _, text in pairs])
        owner = np.array([number[name] for name, _ in pairs], np.int64)

        hashes, begins, ends = _joined(_ngrams(self._text, n))
        passage = np.searchsorted(borders, begins, "right") - 1
        inside = ends < borders[passage + 1]
        hashes, begins, ends = hashes[inside], begins[inside], ends[inside]
        owners = owner[passage[inside]]

        self._hashes, first, which = np.unique(hashes, return_index=True, return_inverse=True)
        self._begins, self._ends = begins[first], ends[first]
        self._holders = np.unique(np.stack([which.reshape(-1), owners]), axis=1)
        """(2, P): pairs of an n-gram and a name that has it, sorted by n-gram."""
        self.too_short = sorted(set(range(len(self.names))) - set(owners.tolist()))
        """Numbers of the names without any n-gram, which cannot be found."""
        self._log2 = max(16, (BITS_AN_NGRAM * len(self._hashes)).bit_length())
        self._bits = _bit_table(self._slots(self._hashes), self._log2)

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, text: str) -> Int64:
        """Numbers of the n-grams that occur in a document, ascending."""
        return self.find_in([text])[0]

    def find_in(self, texts: Sequence[str]) -> list[Int64]:
        """`find` for several documents at once, faster for short ones. No match spans two
        documents."""
        folded = [_folded(text) for text in texts]
        joined, borders = _BORDER.join(folded), _borders(folded).tolist()
        found: list[set[int]] = [set() for _ in texts]
        for hashes, begins, ends in _ngrams(joined, self.n):
            for at, ngram in self._candidates(hashes):
                begin, end = int(begins[at]), int(ends[at])
                document = bisect.bisect_right(borders, begin) - 1
                if end >= borders[document + 1] or ngram in found[document]:
                    continue
                if _words_of(joined[begin:end]) == self._words(ngram):
                    found[document].add(ngram)
        return [np.array(sorted(numbers), np.int64) for numbers in found]

    def ngram(self, number: int) -> str:
        """The words of an n-gram, separated by single spaces."""
        return b" ".join(self._words(number)).decode()

    def _words(self, number: int) -> list[bytes]:
        return _words_of(self._text[self._begins[number] : self._ends[number]])

    def holders(self, ngrams: Int64) -> Int64:
        """Numbers of the names that have any of these n-grams, ascending."""
        return np.unique(self.pairs(ngrams)[1])

    def pairs(self, ngrams: Int64) -> tuple[Int64, Int64]:
        """(positions in `ngrams`, numbers of names): one entry for each name that has the
        n-gram."""
        first = np.searchsorted(self._holders[0], ngrams, "left")
        count = np.searchsorted(self._holders[0], ngrams, "right") - first
        place = np.repeat(np.arange(len(ngrams)), count)
        within = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
        return place, self._holders[1, np.repeat(first, count) + within]

    def _slots(self, hashes: UInt64) -> UInt64:
        return hashes >> np.uint64(64 - self._log2)

    def _candidates(self, hashes: UInt64) -> Iterator[tuple[int, int]]:
        """Positions whose hash is that of a known n-gram, with its number."""
        slots = self._slots(hashes)
        bit = self._bits[slots >> np.uint64(3)] >> (slots & np.uint64(7)).astype(np.uint8)
        at = np.flatnonzero((bit & 1).view(bool))
        if not len(at) or not len(self):
            return
        ngram = np.searchsorted(self._hashes, hashes[at])
        ngram[ngram == len(self)] = 0
        same = self._hashes[ngram] == hashes[at]
        yield from zip(at[same].tolist(), ngram[same].tolist(), strict=True)


class Census:
    """Collects which documents have which n-grams as a corpus is read: about 16 bytes per
    finding."""

    def __init__(self, index: NgramIndex) -> None:
        self.index = index
        self.characters = 0
        self._documents: list[Int64] = []
        self._ngrams: list[Int64] = []

    def add(self, documents: Sequence[int], texts: Sequence[str]) -> None:
        """Add texts, each with the number of the document that it is, or is a part of."""
        for document, text, found in zip(documents, texts, self.index.find_in(texts), strict=True):
            self.characters += len(text)
            if len(found):
                self._documents.append(np.full(len(found), document))
                self._ngrams.append(found)

    def findings(self, most_documents_per_gb: float | None = None) -> tuple[Int64, Int64]:
        """(documents, n-grams), one entry per finding, without repeats, sorted by document. N-grams
        in more than `most_documents_per_gb` documents per 10^9 characters (a smaller corpus counts
        as 10^9) are left out: a licence or a stock phrase belongs to no benchmark."""
        if not self._documents:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        pairs = np.stack([np.concatenate(self._documents), np.concatenate(self._ngrams)])
        documents, ngrams = np.unique(pairs, axis=1)
        if most_documents_per_gb is not None:
            most = most_documents_per_gb * max(1.0, self.characters / 1e9)
            rare = np.bincount(ngrams, minlength=len(self.index))[ngrams] <= most
            documents, ngrams = documents[rare], ngrams[rare]
        return documents, ngrams


def words(text: str) -> list[str]:
    """The words of a text: lower-cased runs of letters and digits."""
    return [word.decode() for word in _words_of(_folded(text))]


def _words_of(folded: bytes) -> list[bytes]:
    return [word for word in folded.split(bytes([_SEPARATOR])) if word]


def _folded(text: str) -> bytes:
    """UTF-8 of the letters and digits, lower-cased, every other character replaced by a separator.
    Unicode's NFKC is applied: an accented letter is one character, a ligature its letters."""
    if not text.isascii():
        normal = unicodedata.normalize("NFKC", text)
        text = _OTHERS.sub(lambda run: _fold_letters(run[0]), normal)
    return text.encode().translate(_FOLD)


@lru_cache(1 << 16)
def _fold_letters(text: str) -> str:
    return "".join(c if c.isalnum() else " " for c in text.lower())


def _ngrams(text: bytes, n: int) -> Iterator[tuple[UInt64, Int64, Int64]]:
    """Hashes of all runs of `n` words, and where each begins and ends, piece by piece. The last n -
    1 words of a piece are carried over to the next, however much lies between."""
    at = 0
    tail = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    while at < len(text):
        stop = min(at + PIECE_BYTES, len(text))
        found = _words(text[at:stop])
        after = stop
        if stop < len(text) and len(found[2]) and found[2][-1] == stop - at and found[1][-1] > 0:
            after = at + int(found[1][-1])  # the last word may continue: it begins the next piece
            found = found[0][:-1], found[1][:-1], found[2][:-1]
        hashes = np.concatenate([tail[0], found[0]])
        begins, ends = (np.concatenate([tail[i], found[i] + at]) for i in (1, 2))
        if len(hashes) >= n:
            yield _rolling(hashes, n), begins[: 1 - n], ends[n - 1 :]
        keep = max(0, len(hashes) - (n - 1))
        tail = hashes[keep:], begins[keep:], ends[keep:]
        at = after


def _words(text: bytes) -> tuple[UInt64, Int64, Int64]:
    """Hash, begin and end of each word."""
    folded = np.frombuffer(text, np.uint8)
    inside = np.zeros(len(folded) + 2, bool)
    np.not_equal(folded, _SEPARATOR, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    begins, ends = edges[::2], edges[1::2]
    powers, inverses = _powers(_BYTE_BASE)
    sums = _prefix_sums(powers[: len(folded)] * folded)
    hashes = (sums[ends] - sums[begins]) * inverses[begins]
    hashes ^= hashes >> np.uint64(33)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(33)
    return hashes, begins, ends


def _rolling(hashes: UInt64, n: int) -> UInt64:
    """Hash of each run of `n` words, from the words' hashes."""
    powers, inverses = _powers(_WORD_BASE)
    sums = _prefix_sums(hashes * powers[: len(hashes)])
    return (sums[n:] - sums[:-n]) * inverses[: len(hashes) - n + 1]


def _prefix_sums(values: UInt64) -> UInt64:
    """Sum of all values before each position, modulo 2^64."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    return sums


@cache
def _powers(base: int) -> tuple[UInt64, UInt64]:
    """base^i and base^-i modulo 2^64, for every position in a piece."""

    def powers(of: int) -> UInt64:
        factors = np.full(PIECE_BYTES + 1, of, np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    return powers(base), powers(pow(base, -1, 1 << 64))


def _bit_table(slots: UInt64, log2: int) -> UInt8:
    flags = np.zeros(1 << log2, bool)
    flags[slots] = True
    return np.packbits(flags, bitorder="little")


def _borders(texts: Sequence[bytes]) -> Int64:
    """Where each text begins once they are joined by single separators, and one past the end of the
    last."""
    lengths = np.array([len(text) + 1 for text in texts], np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _joined(pieces: Iterable[tuple[UInt64, Int64, Int64]]) -> tuple[UInt64, Int64, Int64]:
    none = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    hashes, begins, ends = zip(none, *pieces, strict=True)
    return np.concatenate(hashes), np.concatenate(begins), np.concatenate(ends)
