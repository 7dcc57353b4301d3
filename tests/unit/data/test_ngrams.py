"""Word n-grams against Python's own sets, and overlaps planted by hand."""

import itertools
import random
import re

import numpy as np
import pytest

from outpace.data import ngrams
from outpace.data.ngrams import Census, NgramIndex, words

PASSAGE = (
    "Three men paddle a narrow canoe across the grey lake, and one of them (the youngest) stands "
    "up to wave at somebody's children on the shore."
)
WORDS = re.findall("[a-z0-9]+", PASSAGE.lower())


def naive(passages: dict[str, str], document: str, n: int) -> set[str]:
    """The definition: names whose passage shares n words in a row with the document."""
    there = _runs(document, n)
    return {name for name, text in passages.items() if there & _runs(text, n)}


def _runs(text: str, n: int) -> set[tuple[str, ...]]:
    found = re.findall(r"[^\W_]+", text.lower())
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def names(index: NgramIndex, document: str) -> set[str]:
    return {index.names[i] for i in index.holders(index.find(document))}


@pytest.fixture
def index() -> NgramIndex:
    return NgramIndex([("canoe", PASSAGE), ("other", " ".join(f"other{i}" for i in range(20)))])


@pytest.mark.parametrize("n", [2, 3, 13])
def test_it_finds_what_sets_of_tuples_find(n):
    rng = random.Random(n)

    def text(length: int) -> str:
        vocabulary = ["a", "b", "ab", "B", "1", "é", "Élan", "γάτα"]
        separators = [" ", ", ", "\n\n", " - ", "’", "_"]
        return "".join(rng.choice(vocabulary) + rng.choice(separators) for _ in range(length))

    passages = {str(i): text([0, n - 1, n, 30][i % 4]) for i in range(40)}
    parts = re.split(r"(?<=[ _])", " ".join(passages.values()))
    documents = [text(200) for _ in range(10)]
    documents += ["x ".join(rng.sample(parts, 3)) + passages["7"].upper() for _ in range(20)]
    index = NgramIndex(passages.items(), n)
    expected = [naive(passages, document, n) for document in documents]
    assert any(expected) and not all(e == set(passages) for e in expected)
    assert [names(index, document) for document in documents] == expected
    together = index.find_in(documents)
    assert [{index.names[i] for i in index.holders(f)} for f in together] == expected


@pytest.mark.parametrize(
    "planted",
    [
        PASSAGE,
        PASSAGE.upper(),
        re.sub(r"\W+", " ", PASSAGE),
        PASSAGE.replace(" ", "\r\n   ").replace(",", " --").replace("'", "’"),
        "“" + PASSAGE.replace(",", ";") + "”…",
        " ".join(WORDS[:13]),
        "…and she " + ", ".join(WORDS[-13:]),
        PASSAGE.replace("narrow", "ｎａｒｒｏｗ"),
    ],
)
def test_an_overlap_is_found_however_it_is_cased_spaced_and_pointed(index, planted):
    assert names(index, planted) == {"canoe"}
    assert names(index, f"Before it, some words. {planted} And after.") == {"canoe"}


@pytest.mark.parametrize(
    "clean",
    [
        "",
        "A canoe.",
        " ".join(WORDS[:12]),
        " ".join(WORDS[:12]) + " boat",
        " ".join([*WORDS[:6], "very", *WORDS[6:12]]),
        " ".join(reversed(WORDS)),
        "".join(WORDS),
        " ".join(WORDS[:12]) + WORDS[12] + "s",
    ],
)
def test_less_than_thirteen_words_in_a_row_are_none(index, clean):
    assert not len(index.find(clean))


def test_nothing_is_found_across_documents_or_passages(index):
    halves = [" ".join(WORDS[:12]), " ".join(WORDS[12:24])]
    assert [len(f) for f in index.find_in(halves)] == [0, 0]
    assert len(index.find(" ".join(halves)))
    apart = NgramIndex([("one", halves[0]), ("one", halves[1] + " and more of it"), ("short", "x")])
    assert not len(apart.find(PASSAGE))
    assert apart.too_short == [1]


def test_an_overlap_is_found_wherever_a_piece_ends(index, monkeypatch):
    """At every place about a border of the pieces that are hashed at once."""
    monkeypatch.setattr(ngrams, "PIECE_BYTES", 400)
    expected = index.find(PASSAGE)
    for before in range(200, 420):
        document = ("filler " * 100)[:before] + " " + PASSAGE + " filler" * 300
        assert np.array_equal(index.find(document), expected), before


def test_a_word_longer_than_a_piece_is_passed_over(index, monkeypatch):
    monkeypatch.setattr(ngrams, "PIECE_BYTES", 400)
    assert names(index, "x" * 1234 + " " + PASSAGE) == {"canoe"}
    assert not names(index, "x" * 5000)


def test_equal_hashes_alone_are_no_finding(index, monkeypatch):
    """Whatever the hashes say, words decide."""
    real = index.find(PASSAGE)
    every = range(len(index))
    monkeypatch.setattr(
        NgramIndex, "_candidates", lambda _, hashes: itertools.product(range(len(hashes)), every)
    )
    assert not len(index.find(" ".join(f"other{i}x" for i in range(40))))
    assert np.array_equal(index.find(PASSAGE), real)


def test_parts_of_one_name_count_once_and_shared_ngrams_name_all_holders():
    index = NgramIndex([("a", PASSAGE + " first"), ("a", PASSAGE + " second"), ("b", PASSAGE)])
    assert index.names == ["a", "b"]
    found = index.find(PASSAGE)
    assert index.holders(found).tolist() == [0, 1]
    assert len(found) == len(WORDS) - 12
    assert sorted(map(index.ngram, found)) == sorted(
        " ".join(WORDS[i : i + 13]) for i in range(len(WORDS) - 12)
    )


def test_a_census_leaves_out_what_is_common(index):
    stock = " ".join(f"other{i}" for i in range(13))
    census = Census(index)
    census.add(range(5), [stock] * 3 + ["nothing", PASSAGE])
    census.add([5], [stock + " " + PASSAGE])
    census.add([5, 5], [PASSAGE, stock])  # a document in parts counts once
    documents, _ = census.findings()
    assert np.unique(documents).tolist() == [0, 1, 2, 4, 5]
    documents, found = census.findings(most_documents_per_gb=3)
    assert np.unique(documents).tolist() == [4, 5]
    assert {index.names[i] for i in index.holders(found)} == {"canoe"}
    assert census.characters == 5 * len(stock) + 7 + 1 + 3 * len(PASSAGE)


def test_an_empty_benchmark_finds_nothing():
    index = NgramIndex([])
    assert not len(index.find(PASSAGE)) and not index.names
    assert words("") == []
    assert words("Don’t \udce9 panic_2") == ["don", "t", "panic", "2"]


@pytest.mark.parametrize("gap", [" " * 1500, "-" * 1500, "x" * 1500 + " a b ", "x" * 399 + " "])
def test_what_lies_between_words_or_before_them_hides_nothing(index, monkeypatch, gap):
    monkeypatch.setattr(ngrams, "PIECE_BYTES", 400)
    assert names(index, gap + PASSAGE) == {"canoe"}
    assert names(index, "a few words first " + gap + PASSAGE) == {"canoe"}
    assert np.array_equal(index.find_in([gap, PASSAGE])[1], index.find(PASSAGE))
    if gap.strip("- ") == "":
        assert names(index, gap.join(WORDS)) == {"canoe"}
