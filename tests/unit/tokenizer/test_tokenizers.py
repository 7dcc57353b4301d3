"""GPT-2's tokenizer against its definition: a byte-pair encoder written here from openai/gpt-2's
src/encoder.py, and against transformers' own.
"""

import hashlib
import inspect
import json
import shutil
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from outpace.core.errors import DataError, UsageError
from outpace.tokenizer import TOKENIZERS, get_tokenizer, golden, gpt2

END = "<|endoftext|>"
TRICKY = [
    "",
    " ",
    "\n",
    "   three before, three after   ",
    "tabs\t\tand \t mixed \n\n\n  lines\r\n\r\n \n",
    "a" + " " * 1000 + "b" + "\n" * 1001 + "c" + "\t" * 99,
    "I'm, you're, he's, we've, they'll, I'd, don't; DON'T, I'M; 'tis 's 'll''ve'''re",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 mixed😀in words",
    "漢字かな交じり文、そして句点。한국어 문장입니다！中文，没有空格？",
    "naïve café Ångström Straße ﬁ ǅ ª º ² ½ Ⅷ ٣ १२३",
    "e\u0301 a\u0308\u0323 combining, \u200b zero width, \u200d joiner, \u202e override",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, \u2028 line \u2029 paragraph",
    "separators \x1c\x1d\x1e\x1f next line \x85 end",
    "\x00\x00 nul, \x07 bell \x1b[31m escape \x7f",
    "".join(map(chr, range(0x20))),
    "".join(map(chr, range(0x80, 0x250))),
    f"{END} in the text, {END}{END}, <|endoftext |>, <|endof",
    "1234567890 3.14159 0x1F 1,000,000 a1b2c3",
    "https://example.org/?q=a%20b&c=d#e def f(x):\n    return x**2  # ok\n",
    "\ufffd\ufeffBOM inside\ufeff",
    "𝒜𝓁𝓅𝒽𝒶 𐍈 \U0010ffff",
]


class ReferenceEncoder:
    """openai/gpt-2's encoder.py: merges by their place in vocab.bpe, ids from encoder.json."""

    def __init__(self, folder: Path) -> None:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = (b for b in range(256) if b not in printable)
        self.character = {b: chr(b) for b in printable}
        self.character |= {b: chr(256 + n) for n, b in enumerate(others)}
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
        self.place = {tuple(line.split()): n for n, line in enumerate(lines)}
        self.id = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        self.pattern = regex.compile(
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        )
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        return [i for word in self.pattern.findall(text) for i in self.word(word)]

    def word(self, word: str) -> list[int]:
        if word not in self.known:
            parts = [self.character[b] for b in word.encode()]
            while len(parts) > 1:
                places = [self.place.get(pair, 10**9) for pair in pairwise(parts)]
                if (first := min(places)) == 10**9:
                    break
                merged, at = [], 0
                while at < len(parts):
                    if at < len(places) and places[at] == first:
                        merged.append(parts[at] + parts[at + 1])
                        at += 2
                    else:
                        merged.append(parts[at])
                        at += 1
                parts = merged
            self.known[word] = [self.id[p] for p in parts]
        return self.known[word]


@pytest.fixture(scope="module")
def tokenizer() -> gpt2.Gpt2Tokenizer:
    return get_tokenizer("gpt2")


@cache
def reference_encoder() -> ReferenceEncoder:
    return ReferenceEncoder(gpt2.VOCAB_FOLDER)


@pytest.fixture
def reference() -> ReferenceEncoder:
    return reference_encoder()


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text_has_the_ids_of_the_definition_and_comes_back_whole(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == text


@given(
    st.text(
        st.sampled_from("ab'slvREd \n\t\r.,!_1²漢。、é\u0301😀\x00\x1c\x85\u00a0\u3000<|>"),
        max_size=60,
    )
)
@settings(deadline=None, max_examples=300, derandomize=True)
def test_any_mixture_has_the_ids_of_the_definition(text):
    assert get_tokenizer("gpt2").encode(text) == reference_encoder().encode(text)


@pytest.mark.shared
def test_a_novel_has_the_ids_of_the_definition(tokenizer, reference, shared):
    data = (shared / "novels" / "Barclay_Postern_1911.txt").read_bytes()
    text = data.decode("utf-8-sig")
    assert "\r\n" in text
    ids, lengths = tokenizer.encode_batch([text])
    assert ids.dtype == np.uint16
    assert ids.tolist() == reference.encode(text)
    assert lengths.tolist() == [len(ids)]
    assert tokenizer.decode(ids.tolist()) == text


@pytest.mark.shared
def test_text_has_the_same_ids_however_it_is_cut_into_parts(
    tokenizer, reference, shared, monkeypatch
):
    novel = (shared / "novels" / "Barclay_Postern_1911.txt").read_text(encoding="utf-8-sig")
    texts = [*TRICKY, novel[:20_000]]
    monkeypatch.setattr(gpt2, "LONGEST_RUN", 10**6)
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(gpt2, "PART_CHARACTERS", size)
        assert "".join(gpt2._parts(novel)) == novel
        assert len(list(gpt2._parts(novel))) > len(novel) // (size + 200)
        for text in texts:
            assert tokenizer.encode(text) == reference.encode(text)


@given(st.text(st.sampled_from("ab'sl \n\t._1²漢。，é\u0301\x1c\u00a0\u3000"), max_size=60))
@settings(deadline=None, max_examples=300, derandomize=True)
def test_a_cut_between_parts_never_changes_the_ids(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2, "PART_CHARACTERS", 1)
        assert get_tokenizer("gpt2").encode(text) == reference_encoder().encode(text)


@pytest.mark.parametrize("byte", [b" ", b"\n", b"a", b"0", b"^", b"\0", b"ab", b" \n", b"\xc2\xa0"])
def test_a_million_of_one_character_are_encoded_whole(tokenizer, byte):
    """A single pass of tiktoken panics at some 500,000 spaces."""
    text = (byte * (1_000_000 // len(byte))).decode() + "x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_byte_has_a_token_and_every_id_but_the_last_stands_for_bytes(tokenizer):
    reference = json.loads((gpt2.VOCAB_FOLDER / "encoder.json").read_text(encoding="utf-8"))
    lengths = tokenizer.token_bytes()
    assert len(lengths) == tokenizer.vocab_size == len(reference) == 50257
    in_order = sorted(reference, key=reference.get)
    assert lengths == [*map(len, in_order[:-1]), 0]
    assert reference[END] == tokenizer.end_of_text == 50256
    for byte in range(256):
        text = bytes([byte]).decode("latin-1")
        assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode())


@pytest.mark.parametrize("text", [END, f"a{END}b", END * 3, f" {END}\n", "<|endof" + "text|>" * 2])
def test_a_literal_end_of_text_is_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_every_row_brings_text_back_and_knows_the_length_of_its_tokens(name):
    tokenizer, texts = get_tokenizer(name), ["The sea, the sea", "naïve café", "", " 1919\n"]
    ids, lengths = tokenizer.encode_batch(texts)
    each = [tokenizer.encode(text) for text in texts]
    assert lengths.tolist() == [len(one) for one in each]
    assert ids.tolist() == [i for one in each for i in one]
    assert tokenizer.decode(ids.tolist()) == "".join(texts)
    sizes = tokenizer.token_bytes()
    assert len(sizes) == tokenizer.vocab_size and sizes[tokenizer.end_of_text] == 0
    assert sum(sizes[i] for i in ids) == len("".join(texts).encode())


def test_a_model_tells_its_tokenizer_by_the_size_of_its_vocabulary():
    sizes = [TOKENIZERS.load(name).vocab_size for name in TOKENIZERS.names()]
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_lone_surrogates_become_a_replacement_character(name):
    tokenizer = get_tokenizer(name)
    ids = tokenizer.encode("before \ud800 between \udfff\udfff after")
    replacement = "\ufffd" if name == "gpt2" else "?"
    assert tokenizer.decode(ids) == "before X between XX after".replace("X", replacement)


def test_a_lone_surrogate_in_a_late_part_does_not_change_the_rest(tokenizer):
    text = "word " * 40_000 + "\udc80 end"
    assert len(list(gpt2._parts(text))) > 2
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\udc80", "\ufffd")


def test_the_vocabulary_is_the_one_that_openai_published():
    """The hashes stand in tiktoken_ext/openai_public.py too."""
    published = inspect.getsource(openai_public.gpt2)
    for file in ("encoder.json", "vocab.bpe"):
        digest = hashlib.sha256((gpt2.VOCAB_FOLDER / file).read_bytes()).hexdigest()
        assert digest in published
    assert gpt2.Gpt2Tokenizer.vocab_sha256 in published


@pytest.mark.parametrize("file", ["encoder.json", "vocab.bpe"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_changed_or_missing_vocabulary_is_refused(tmp_path, monkeypatch, file, damage):
    folder = tmp_path / "vocab"
    shutil.copytree(gpt2.VOCAB_FOLDER, folder)
    monkeypatch.setattr(gpt2, "VOCAB_FOLDER", folder)
    gpt2._built.cache_clear()
    try:
        assert get_tokenizer("gpt2").encode("Hello") == [15496]
        gpt2._built.cache_clear()
        if damage == "missing":
            (folder / file).unlink()
        else:
            data = bytearray((folder / file).read_bytes())
            data[1000] ^= 1
            (folder / file).write_bytes(data)
        with pytest.raises(DataError, match=file):
            get_tokenizer("gpt2")
    finally:
        gpt2._built.cache_clear()


def test_transformers_gives_the_same_ids_from_the_same_files(tokenizer, tmp_path):
    from transformers import GPT2TokenizerFast

    shutil.copy(gpt2.VOCAB_FOLDER / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(gpt2.VOCAB_FOLDER / "vocab.bpe", tmp_path / "merges.txt")
    theirs = GPT2TokenizerFast.from_pretrained(tmp_path)
    for text in TRICKY:
        if END not in text:  # theirs takes it for the special token
            assert theirs(text)["input_ids"] == tokenizer.encode(text)


def test_bytes_are_utf_8():
    tokenizer = get_tokenizer("bytes")
    for text in TRICKY:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.encode_batch([text])[0].tolist() == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(tokenizer.token_bytes()) == 257
    assert max(tokenizer.encode("".join(TRICKY))) < tokenizer.end_of_text == 256


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean gpt2"):
        get_tokenizer("gtp2")


def test_the_golden_ids_are_those_of_the_definition(reference):
    """But where Python's `regex` knows newer characters than the libraries' tables do."""
    texts = golden.golden_texts()
    ids = [reference.encode(text) for text in texts]
    flat = np.array([i for text in ids for i in text], "<u2")
    lengths = np.array([len(text) for text in ids], "<i8")
    digest = hashlib.sha256(flat.tobytes() + lengths.tobytes()).hexdigest()
    assert digest == golden.GOLDEN_SHA256
    assert len(texts) > 300


@pytest.fixture(scope="module")
def fast() -> gpt2.Gpt2Tokenizer:
    tokenizer = get_tokenizer("gpt2", "fastokens")
    assert tokenizer.version.startswith("fastokens")
    return tokenizer


@given(st.lists(st.text(max_size=40) | st.sampled_from(TRICKY), max_size=5))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_both_engines_give_the_same_ids_and_lengths_of_a_batch(fast, tokenizer, texts):
    ids, lengths = fast.encode_batch(texts)
    assert ids.dtype == np.uint16
    expected = [tokenizer.encode(text) for text in texts]
    assert lengths.tolist() == [len(text) for text in expected]
    assert ids.tolist() == [i for text in expected for i in text]


def test_every_code_point_has_the_same_ids_from_both_engines(fast, tokenizer):
    """One in 17 of the 1.1 million, each after a letter and before a space."""
    points = [chr(c) for c in range(0, 0x110000, 17) if not 0xD800 <= c < 0xE000]
    texts = ["a" + c + " " for c in points]
    (fast_ids, fast_lengths), (ids, lengths) = (e.encode_batch(texts) for e in (fast, tokenizer))
    assert np.array_equal(fast_lengths, lengths)
    assert np.array_equal(fast_ids, ids)


def test_a_long_text_among_short_ones_keeps_its_place(fast, tokenizer):
    texts = ["short", "word " * 40_000, "", "\ud800 alone", "end"]
    ids, lengths = fast.encode_batch(texts)
    assert lengths.tolist() == [len(tokenizer.encode(text)) for text in texts]
    assert ids.tolist() == [i for text in texts for i in tokenizer.encode(text)]


def test_a_process_that_ends_waits_for_a_tokenizer_that_is_being_loaded():
    """Else its Rust comes back to a Python that is ending, and aborts the process."""
    code = (
        "import atexit, sys; from outpace.tokenizer import gpt2, shared; "
        "shared.preload('gpt2', 'auto'); "
        "atexit.register(lambda: print(len(shared._loaded))); sys.exit(3)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "1\n", "")
