"""Finding the documents of a prepared dataset that share a run of words with a benchmark. Tokens
are read and decoded block by block, so memory does not depend on the size of the dataset, its
shards or its documents.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from outpace.data.arrays import Bools, Int64, UInt16
from outpace.data.ngrams import Census, NgramIndex, words
from outpace.data.shards import Dataset
from outpace.data.stream import TokenStream
from outpace.tokenizer import Tokenizer, get_tokenizer

BLOCK_TOKENS = 1 << 18
"""Tokens decoded at once: about 1 MB of text."""
TAIL_CHARACTERS = 1 << 16
"""First length of a block's end that is searched for its last words, if its document continues."""
MOST_EXAMPLES = 5
"""How many documents are listed per finding."""
COMMON_PER_GB = 10.0


def contamination(
    dataset: Dataset,
    split: str,
    index: NgramIndex,
    *,
    most_documents_per_gb: float | None = COMMON_PER_GB,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Read a split of `dataset` and return, as a record, which names of the index occur in it.

    A document's number is its position in the split, from 0. `progress` is called with the share
    read. DataError for a damaged shard.
    """
    started = time.perf_counter()
    stream, census, documents = dataset.stream(split), Census(index), 0
    try:
        for numbers, texts in _blocks(stream, get_tokenizer(dataset.tokenizer), index.n, progress):
            census.add(numbers, texts)
            documents = numbers[-1] + 1
    finally:
        stream.close()
    found = census.findings(most_documents_per_gb)
    common = len(np.unique(census.findings()[1])) - len(np.unique(found[1]))
    return {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": split,
        "n": index.n,
        "most_documents_per_gb": most_documents_per_gb,
        "documents": documents,
        "characters": census.characters,
        "questions": len(index.names),
        "too_short": [index.names[i] for i in index.too_short],
        "common_ngrams": common,
        "contaminated": _by_name(index, *found),
        "seconds": time.perf_counter() - started,
    }


def _blocks(
    stream: TokenStream, tokenizer: Tokenizer, n: int, progress: Callable[[float], object]
) -> Iterator[tuple[list[int], list[str]]]:
    """Numbers and texts of documents, or parts of them, one block of tokens at a time. A block ends
    before a token that begins with white space, so no word and no character is cut; a part that
    continues a document starts with the n - 1 words before it."""
    cuttable = _cuttable(tokenizer.name)
    at, document, before = 0, -1, ""
    while at < len(stream):
        tokens: UInt16 = np.empty(min(BLOCK_TOKENS, len(stream) - at), np.uint16)
        stream.read(at, tokens)
        if at + len(tokens) < len(stream) and len(cuts := np.flatnonzero(cuttable[tokens[1:]])):
            tokens = tokens[: cuts[-1] + 1]
        at += len(tokens)
        numbers, texts = [], []
        marks = np.flatnonzero(tokens == tokenizer.end_of_text)
        for i, part in enumerate(np.split(tokens, marks)):
            if i > 0:
                document, before = document + 1, ""
            elif len(part):  # continues the last block's document, or a stream begins inside one
                document = max(document, 0)
            else:
                continue
            numbers.append(document)
            texts.append(before + tokenizer.decode(part[i > 0 :].tolist()))
        before = " ".join(_last_words(texts[-1], n - 1)) + " "
        yield numbers, texts
        progress(at / len(stream))


def _last_words(text: str, number: int) -> list[str]:
    """The last words of a text. Longer and longer ends are tried, as an end may begin inside a
    word."""
    length = TAIL_CHARACTERS
    while len(found := words(text[-length:])) <= number and length < len(text):
        length *= 4
    return found[-number:]


@cache
def _cuttable(name: str) -> Bools:
    """For each token, whether it begins with white space or is end-of-text."""
    tokenizer = get_tokenizer(name)
    ids = range(tokenizer.vocab_size)
    begins = np.array([tokenizer.decode([i])[:1].isspace() for i in ids])
    begins[tokenizer.end_of_text] = True
    return begins


def _by_name(index: NgramIndex, documents: Int64, ngrams: Int64) -> dict[str, dict[str, Any]]:
    """For each name found: the number of documents, the first of them, and the words they share."""
    place, holder = index.pairs(ngrams)
    pairs, first = np.unique(np.stack([holder, documents[place]]), axis=1, return_index=True)
    holders, begins = np.unique(pairs[0], return_index=True)
    return {
        index.names[number]: {
            "documents": len(those),
            "first": those[:MOST_EXAMPLES].tolist(),
            "words": index.ngram(int(ngrams[place[first[begin]]])),
        }
        for number, begin, those in zip(
            holders.tolist(), begins.tolist(), np.split(pairs[1], begins)[1:], strict=True
        )
    }
