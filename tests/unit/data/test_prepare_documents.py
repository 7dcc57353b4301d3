"""From documents to shards: what is kept, on which side it falls, and that nothing else decides."""

import gzip
import itertools
import json
import math
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import xxhash
from conftest import files
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.core.errors import DataError, StorageError, UsageError
from outpace.data import entropy
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.sources.files import FilesSource
from outpace.data.sources.readers import Reading
from outpace.tokenizer import get_tokenizer

from .helpers import Texts, prepared, read_documents, read_shard, read_texts


def fraction(text: str) -> float:
    """A document's place in [0, 1) by its hash."""
    return xxhash.xxh3_64_intdigest(text.encode()) / 2**64


def test_every_document_comes_back_whole_and_on_the_side_of_its_hash(dataset, texts):
    assert read_texts(dataset.folder, "val") == [t for t in texts if fraction(t) < 0.1]
    assert read_texts(dataset.folder, "train") == [t for t in texts if fraction(t) >= 0.1]


@pytest.mark.shared
def test_real_chapters_come_back_from_gpt2_shards(shared, folder):
    with gzip.open(shared / "eltec_chapters.jsonl.gz", "rt", encoding="utf-8") as f:
        chapters = [json.loads(next(f))["text"] for _ in range(30)]
    prepared(folder, chapters, tokenizer="gpt2", val_fraction=0.2, shard_tokens=20_000)
    decode = get_tokenizer("gpt2").decode
    found = [decode(d) for s in ("train", "val") for d in read_documents(folder, s, 50256)]
    assert sorted(found) == sorted(chapters)
    assert len(list(folder.glob("*.bin"))) > 5


@pytest.mark.parametrize("shard_tokens", [1, 2000, 100_000])
def test_the_number_of_workers_does_not_change_a_byte(tmp_path, texts, monkeypatch, shard_tokens):
    monkeypatch.setattr("outpace.data.sources.BATCH_CHARACTERS", 100)
    texts = texts[:40] if shard_tokens == 1 else texts
    for workers in (1, 4):
        folder = tmp_path / str(workers) / "made"
        prepared(folder, texts, workers=workers, val_fraction=0.1, shard_tokens=shard_tokens)
    assert files(tmp_path / "1" / "made") == files(tmp_path / "4" / "made")


def test_the_size_of_shards_does_not_change_the_stream(tmp_path, texts):
    streams, texts = [], texts[:40]
    for size in (1, 700, 10**6):
        folder = prepared(tmp_path / str(size), texts, val_fraction=0.1, shard_tokens=size).folder
        paths = sorted(folder.glob("*.bin"))
        streams.append([t for path in paths for t in read_shard(path)])
        if size == 1:
            assert len(paths) == len(texts)  # a document is never cut
    assert streams[0] == streams[1] == streams[2]


def test_the_split_does_not_depend_on_the_order_of_documents(tmp_path, texts):
    shuffled = random.Random(3).sample(texts, len(texts))
    for name, documents in (("a", texts), ("b", shuffled)):
        prepared(tmp_path / name, documents, val_fraction=0.1)
    for split in ("train", "val"):
        a, b = (read_texts(tmp_path / name, split) for name in "ab")
        assert a != b
        assert sorted(a) == sorted(b)


def test_copies_and_empty_documents_are_left_out_and_counted(folder, texts):
    documents = ["", texts[0], " \n\t ", texts[1], texts[0], "\u3000", texts[1], texts[0], ""]
    manifest = prepared(folder, [*documents, *texts[2:50]], val_fraction=0.3).manifest
    kept = sorted(read_texts(folder, "train") + read_texts(folder, "val"))
    assert kept == sorted(texts[:50])
    assert manifest["documents"]["source"] == len(documents) + 48
    assert manifest["documents"]["empty_left_out"] == 4
    assert manifest["documents"]["exact_copies_left_out"] == 3


def test_documents_that_differ_in_white_space_alone_are_different(folder):
    prepared(folder, ["a b", "a  b", "a b "], val_fraction=0)
    assert read_texts(folder, "train") == ["a b", "a  b", "a b "]


def test_the_lowest_hash_is_validation_when_the_fraction_catches_none(folder, texts):
    prepared(folder, texts[:20], val_fraction=1e-9)
    assert read_texts(folder, "val") == [min(texts[:20], key=fraction)]
    assert len(read_texts(folder, "train")) == 19


def test_the_highest_hash_is_training_when_the_fraction_catches_all(folder, texts):
    prepared(folder, texts[:5], val_fraction=0.9999999)
    assert read_texts(folder, "train") == [max(texts[:5], key=fraction)]
    assert len(read_texts(folder, "val")) == 4


def test_no_fraction_is_no_validation(folder, texts):
    dataset = prepared(folder, texts[:5], val_fraction=0)
    assert dataset.tokens("val") == 0
    assert read_texts(folder, "train") == texts[:5]


@pytest.mark.parametrize("copies", [1, 3])
def test_a_single_document_is_cut_at_a_line(folder, texts, copies):
    text = "\n".join(texts)
    manifest = prepared(folder, [text] * copies, val_fraction=0.1).manifest
    [train], [val] = read_texts(folder, "train"), read_texts(folder, "val")
    assert train + val == text
    assert train.endswith("\n")
    assert 0.09 < len(val) / len(text) < 0.12
    assert str(len(train)) in manifest["split"]


@pytest.mark.parametrize(("text", "val"), [("x" * 100, "x" * 10), ("ab", "b"), ("a", "")])
def test_a_single_document_without_lines_is_cut_anywhere(folder, text, val):
    prepared(folder, [text], val_fraction=0.1)
    assert "".join(read_texts(folder, "val")) == val
    assert "".join(read_texts(folder, "train")) + val == text
    assert all(read_texts(folder, split) != [""] for split in ("train", "val"))


@given(
    st.lists(st.sampled_from(["", " ", "ab", "b.", "c\n", "dd dd\nd", "é!", "漢字"]), max_size=8),
    st.sampled_from([0, 1e-12, 0.3, 0.9999999]),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_the_split_holds_each_text_once_and_leaves_no_side_empty(documents, val_fraction):
    kept = {text for text in documents if text.strip()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "made"
        if not kept:
            with pytest.raises(DataError, match="none with text"):
                prepared(folder, documents, val_fraction=val_fraction)
            assert not folder.exists()
            return
        manifest = prepared(folder, documents, val_fraction=val_fraction).manifest
        train, val = read_texts(folder, "train"), read_texts(folder, "val")
    if "cut" in manifest["split"]:
        assert ["".join(train + val)] == list(kept)
    else:
        assert sorted(train + val) == sorted(kept)
    assert train
    assert bool(val) == (val_fraction > 0)
    counted = manifest["documents"]
    assert counted["empty_left_out"] == sum(not t.strip() for t in documents)
    assert counted["exact_copies_left_out"] == len(documents) - len(kept) - sum(
        not t.strip() for t in documents
    )
    assert manifest["text_bytes"] == sum(len(t.encode()) for t in kept)


def test_the_unigram_entropy_is_that_of_the_training_tokens(folder, texts):
    dataset = prepared(folder, texts, val_fraction=0.1, shard_tokens=4000)
    counts = Counter(t for path in folder.glob("train_*.bin") for t in read_shard(path))
    assert dataset.unigram_entropy == pytest.approx(nats(counts), rel=1e-12)


def test_the_unigram_entropy_of_much_text_is_that_of_stretches_from_all_of_it(
    folder, texts, monkeypatch
):
    monkeypatch.setattr(entropy, "STRETCH", 50)
    monkeypatch.setattr(entropy, "MOST_COUNTED", 3000)
    dataset = prepared(folder, texts, val_fraction=0.1, shard_tokens=4000)
    shards = [list(read_shard(path)) for path in sorted(folder.glob("train_*.bin"))]
    every = -(-sum(map(len, shards)) // 3000)
    assert len(shards) > 2 < every
    stretches = [s[at : at + 50] for s in shards for at in range(0, len(s), every * 50)]
    counts = Counter(itertools.chain(*stretches))
    assert counts.total() < 3000 + 50 * len(shards)
    assert dataset.unigram_entropy == pytest.approx(nats(counts), rel=1e-12)


def nats(counts):
    n = counts.total()
    return -sum(c / n * math.log(c / n) for c in counts.values())


def test_lone_surrogates_and_controls_do_not_stop_the_rest(folder):
    texts = ["\ud800", "nul \0 bell \a", "\u202eright to left\u200d", "\ufeffinside"]
    prepared(folder, texts, tokenizer="gpt2", val_fraction=0)
    decode = get_tokenizer("gpt2").decode
    found = [decode(d) for d in read_documents(folder, "train", 50256)]
    assert found == ["\ufffd", *texts[1:]]


@pytest.mark.parametrize("limit", [1, 100, 1000, 3000])
@pytest.mark.parametrize("batch", [1, 10**6])
def test_a_limit_stops_behind_the_document_that_reaches_it(
    folder, texts, limit, batch, monkeypatch
):
    monkeypatch.setattr("outpace.data.sources.BATCH_CHARACTERS", batch)
    prepared(folder, texts, val_fraction=0.1, limit_tokens=limit)
    train, val, tokens = [], [], 0
    for text in texts:
        is_val = fraction(text) < 0.1
        if tokens < limit or (is_val and not val):  # the first validation text is always taken
            (val if is_val else train).append(text)
            tokens += 1 + len(text.encode())
    assert read_texts(folder, "train") == train
    assert read_texts(folder, "val") == val
    assert len(val) >= 1


def test_little_is_read_beyond_a_limit(folder, texts, monkeypatch):
    class Counting(Texts):
        read = 0

        def documents(self):
            for text in self.texts:
                self.read += 1
                yield text

    monkeypatch.setattr("outpace.data.sources.BATCH_CHARACTERS", 1)
    source = Counting(texts)
    prepare(source, folder, PrepareOptions("bytes", 0.1, limit_tokens=1000), workers=1)
    assert source.read < len(texts) / 4


@pytest.mark.parametrize("val_fraction", [0, 0.1])
def test_a_limit_of_documents(folder, texts, val_fraction):
    prepared(folder, [texts[0], *texts], val_fraction=val_fraction, limit_documents=30)
    found = read_texts(folder, "train") + read_texts(folder, "val")
    assert sorted(found) == sorted(texts[:30])


def test_a_limit_leaves_a_single_document_its_validation_part(folder, texts):
    text = "\n".join(texts)
    prepared(folder, [text], val_fraction=0.1, limit_tokens=10)
    assert "".join(read_texts(folder, "train") + read_texts(folder, "val")) == text
    assert read_texts(folder, "val")


def test_a_prepared_folder_is_not_prepared_again(folder, texts):
    prepared(folder, texts[:20])
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}
    prepared(folder, texts[:20])
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}


class Breaking(Texts):
    """Fails after its tenth document."""

    def documents(self):
        yield from itertools.islice(super().documents(), 10)
        raise DataError("BROKEN", "the disk")


SETTINGS = [
    ({"val_fraction": 0.5}, "prepared with val_fraction 0.01, not 0.5;"),
    ({"limit_tokens": 5}, "prepared with limit_tokens None, not 5;"),
    ({"tokenizer": "gpt2", "shard_tokens": 77}, "shard_tokens 9, not 77; tokenizer bytes, not gpt"),
]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"texts": slice(0, 19)}, "prepared from other text"),
        ({"texts": slice(1, 20)}, "prepared from other text"),
        *SETTINGS,
    ],
)
def test_other_text_or_settings_in_the_same_folder_are_named_and_nothing_changes(
    folder, texts, change, words
):
    prepared(folder, texts[:20], shard_tokens=9)
    before = files(folder)
    other = texts[change.get("texts", slice(0, 20))]
    options = {"shard_tokens": 9} | {k: v for k, v in change.items() if k != "texts"}
    with pytest.raises(DataError, match=words):
        prepared(folder, other, **options)
    assert files(folder) == before


@pytest.mark.parametrize(("change", "words"), SETTINGS)
def test_other_settings_than_those_of_an_interrupted_preparation_are_named(
    folder, texts, change, words, monkeypatch
):
    monkeypatch.setattr("outpace.data.sources.BATCH_CHARACTERS", 100)
    options = {"shard_tokens": 9, "tokenizer": "bytes"}
    with pytest.raises(DataError, match="BROKEN"):
        prepare(Breaking(texts), folder, PrepareOptions(**options))
    before = files(folder)
    assert len(before) > 4
    with pytest.raises(DataError, match=words):
        prepared(folder, texts, **options | change)
    assert files(folder) == before


def test_shards_of_something_else_are_left_alone(folder, texts):
    folder.mkdir()
    (folder / "fineweb_train_000001.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match="fineweb_train_000001"):
        prepared(folder, texts)
    assert list(files(folder)) == ["fineweb_train_000001.bin"]


class Changing(Texts):
    """What it holds from the second reading on is another."""

    reads = 0

    def __init__(self, texts, changed):
        super().__init__(texts)
        self.changed = changed

    def documents(self):
        self.reads += 1
        yield from self.texts if self.reads == 1 else self.changed


def test_text_that_changes_while_the_split_needs_a_second_pass_is_noticed(folder, texts):
    for changed in ([*texts[:9], "new"], texts[:9], [*texts[:10], "one more"]):
        source = Changing(texts[:10], changed)
        with pytest.raises(DataError, match="changed"):
            prepare(source, folder, PrepareOptions(tokenizer="bytes", val_fraction=1e-9))
        assert not (folder / "manifest.json").exists()


def test_text_that_changes_before_a_restart_is_noticed_and_shards_are_kept(
    folder, texts, monkeypatch
):
    options = PrepareOptions(tokenizer="bytes", val_fraction=0.1, shard_tokens=500)

    def stop(*_: object) -> None:
        raise KeyError

    with monkeypatch.context() as patch:
        patch.setattr("outpace.data.prepare.manifest_of", stop)
        with pytest.raises(KeyError):
            prepare(Texts(texts[:50]), folder, options, workers=1)
    before = files(folder)
    assert len(before) > 5
    for changed in (["new", *texts[1:50]], texts[:49], texts[1:50]):
        with pytest.raises(DataError, match=r"changed|vanished"):
            prepare(Texts(changed), folder, options, workers=1)
        assert {n: h for n, h in files(folder).items() if n.endswith("bin")} == {
            n: h for n, h in before.items() if n.endswith("bin")
        }
    prepare(Texts(texts[:50]), folder, options, workers=1)
    assert sorted(read_texts(folder, "train") + read_texts(folder, "val")) == sorted(texts[:50])


def test_an_output_that_is_a_file_is_a_storage_error(tmp_path, texts):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="file"):
            prepared(output, texts)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_may_not_be_written_is_a_storage_error(as_nobody, texts):
    locked = as_nobody / "locked"
    locked.mkdir(0o555)
    for output in (locked, locked / "below"):
        with pytest.raises(StorageError, match=r"cannot write to .*locked.*Permission denied"):
            prepared(output, texts)
    assert files(locked) == {}


def test_a_shard_size_beyond_the_format_is_refused(folder, texts):
    with pytest.raises(UsageError, match="2,147,483,647"):
        prepared(folder, texts, shard_tokens=2**31)


def test_the_manifest_says_what_went_in(folder, tmp_path):
    text = tmp_path / "input"
    for name, data in (("a/x.txt", b"\xef\xbb\xbfone\r\n"), ("b/x.txt", b"two\n"), ("z.md", b"3")):
        (text / name).parent.mkdir(parents=True, exist_ok=True)
        (text / name).write_bytes(data)
    options = PrepareOptions(val_fraction=0, limit_tokens=1000)
    manifest = prepare(FilesSource([str(text)]), folder, options).manifest
    assert manifest["name"] == folder.name
    assert manifest["source"]["kind"] == "files"
    assert manifest["source"]["files"] == ["a/x.txt", "b/x.txt", "z.md"]
    assert manifest["source"]["normalisation"]["byte_order_marks_removed"] == 1
    assert manifest["source"]["normalisation"]["files_with_crlf_turned_to_lf"] == 1
    assert manifest["tokenizer"]["name"] == "gpt2"
    assert manifest["tokenizer"]["vocab_size"] == 50257
    assert manifest["options"]["limit_tokens"] == 1000
    found = [get_tokenizer("gpt2").decode(d) for d in read_documents(folder, "train", 50256)]
    assert found == ["one\n", "two\n", "3"]


def test_the_name_of_the_dataset_is_the_folder_even_when_it_is_the_current_one(
    folder, texts, monkeypatch
):
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert prepared(Path(), texts[:3]).name == folder.name


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("first", "then"), [("replace", "skip"), ("skip", "replace")])
def test_what_bad_documents_became_is_part_of_what_a_dataset_is(
    tmp_path, monkeypatch, first, then, finished
):
    """Finished or interrupted, another --errors does not go on with it; with one that met none, as
    strict has, it does."""
    options = PrepareOptions(tokenizer="bytes", val_fraction=0.1, shard_tokens=100)
    source = tmp_path / "text"
    source.mkdir()
    for i in range(20):
        (source / f"{i:02}.txt").write_bytes(b"document %d" % i + b" \xff" * (i == 3))

    def go(errors: str, folder: Path) -> dict[str, int]:
        made = prepare(
            FilesSource([str(source)], Reading(errors=errors)), folder, options, workers=1
        )
        return made.manifest["documents"]

    def begin(errors: str, folder: Path) -> None:
        if finished:
            go(errors, folder)
            return
        with monkeypatch.context() as patch, pytest.raises(KeyError):
            patch.setattr("outpace.data.prepare.manifest_of", lambda *_: {}["stop"])
            go(errors, folder)

    begin(first, tmp_path / "a")
    with pytest.raises(DataError, match=f"prepared with errors {first}, not {then}"):
        go(then, tmp_path / "a")
    assert go(first, tmp_path / "a")["source"] == 20 - (first == "skip")

    (source / "03.txt").write_bytes(b"document 3")
    begin("strict", tmp_path / "b")
    assert go(then, tmp_path / "b")["source"] == 20
