"""The pieces of a preparation, each against something else: threads against one thread, engines
against each other, filters, near duplicates, contamination, nanoGPT's split, restarts in a chunk.
"""

import gzip
import json
import math
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import files

from outpace.cli.main import main
from outpace.core.errors import DataError, Stopped, StorageError, UsageError
from outpace.data import encode as encode_module
from outpace.data import nanogpt_split
from outpace.data.decontaminate import Benchmark
from outpace.data.encode import Work, encode_chunk
from outpace.data.exports import EXPORTS
from outpace.data.filters import parse_filter
from outpace.data.folder import Signalled, other_dataset, stop_on_signals
from outpace.data.info import lengths_of, samples_of
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.seen import Seen
from outpace.data.shards import open_dataset, verify_dataset
from outpace.data.sketch import NearDuplicates, sketch
from outpace.data.sources import Batch
from outpace.data.sources.files import FilesSource
from outpace.data.sources.readers import Reading
from outpace.data.threads import AHEAD, ThreadEngine

from .helpers import Texts, prepared, read_documents, read_texts, texts_in

WORDS = ["the", "of", "and", "a", "to", "in", "he", "was", "it", "that", "his", "with", "as", "had"]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + rng.choice("abcdefgh") for _ in range(words))


class Slow:
    """A chunk of so many one-document batches, each read after a moment, or at a sign."""

    def __init__(self, name: str, batches: int, wait: float = 0.0) -> None:
        self.name, self.batches, self.wait = name, batches, wait
        self.size_bytes = self.text_bytes = batches
        self.documents, self.stamp = batches, "stat:1"
        self.reading = 0
        self.most_readers = 0

    def read(self, columns=()):
        for n in range(self.batches):
            self.reading += 1
            self.most_readers = max(self.most_readers, self.reading)
            time.sleep(self.wait)
            self.reading -= 1
            yield Batch([f"{self.name} {n}"])


def run(engine, chunks, work=None, skip=0):
    tasks = [(n, chunk, skip if n == 0 else 0) for n, chunk in enumerate(chunks)]
    return [(n, p.first, bytes(p.ids.tolist()).decode()) for n, p in engine(tasks, work or BYTES)]


BYTES = Work("bytes")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_give_pieces_in_order_whatever_each_chunk_takes(workers):
    chunks = [Slow("a", 30, 0.001), Slow("b", 1), Slow("c", 0), Slow("d", 9, 0.002), Slow("e", 4)]
    expected = [(n, i, f"{c.name} {i}") for n, c in enumerate(chunks) for i in range(c.batches)]
    assert run(ThreadEngine(workers), chunks) == expected
    assert all(chunk.most_readers <= 1 for chunk in chunks)
    assert run(ThreadEngine(workers), chunks, skip=28) == expected[28:]


def test_one_long_chunk_is_encoded_by_several_threads(monkeypatch):
    """While one thread holds a batch of a chunk, another reads on in it."""
    both = threading.Barrier(2, timeout=20)
    encode = encode_module.encode

    def meeting(chunk, first, batch, work):
        if first < 2:
            both.wait()
        return encode(chunk, first, batch, work)

    monkeypatch.setattr("outpace.data.threads.encode", meeting)
    assert len(run(ThreadEngine(2), [Slow("a", 6)])) == 6


def test_few_pieces_wait_for_a_slow_consumer_and_closing_stops_the_threads():
    read = 0

    class Counting(Slow):
        def read(self, columns=()):
            nonlocal read
            for batch in super().read():
                read += 1
                yield batch

    chunks = [Counting(str(n), 50) for n in range(4)]
    pieces = ThreadEngine(2)([(n, c, 0) for n, c in enumerate(chunks)], BYTES)
    for _ in range(3):
        next(pieces)
    time.sleep(0.2)
    assert read <= 3 + AHEAD * 2 + 2
    pieces.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("outpace-prepare")]


def test_a_fault_comes_in_its_place_behind_the_pieces_before_it():
    class Broken(Slow):
        def read(self, columns=()):
            yield Batch(["fine"])
            raise DataError("BAD-INPUT", "broken here")

    pieces = ThreadEngine(3)([(0, Slow("a", 20, 0.001), 0), (1, Broken("b", 1), 0)], BYTES)
    seen = []
    with pytest.raises(DataError, match="broken here"):
        for number, piece in pieces:
            seen.append((number, piece.first))
    assert seen == [(0, n) for n in range(20)] + [(1, 0)]


def test_tokens_pass_through_and_have_their_own_hashes(folder):
    documents = [[1, 2, 3], [], [7] * 500, [1, 2, 3], [50255]]

    class Tokens(Texts):
        def chunks(self):
            return [TokenChunk("x", 5)]

    class TokenChunk(Slow):
        def read(self, columns=()):
            yield Batch(
                ids=np.concatenate([np.array(d, np.uint16) for d in documents]),
                lengths=np.array([len(d) for d in documents]),
            )

    options = PrepareOptions(val_fraction=0, tokenizer="gpt2")
    dataset = prepare(Tokens([]), folder, options, workers=2)
    verify_dataset(dataset)
    assert read_documents(folder, "train", 50256) == [[1, 2, 3], [7] * 500, [50255]]
    with pytest.raises(DataError, match="beyond the vocabulary"):
        prepare(Tokens([]), folder.with_name("b"), PrepareOptions(tokenizer="bytes"))


def test_a_different_token_aborts_and_names_the_document(folder, monkeypatch):
    """One id of one document in 1,024 by hash is wrong; the finished shards are kept."""
    encode = encode_module.get_tokenizer("gpt2", "fastokens").__class__.encode_batch

    def wrong(self, texts):
        ids, lengths = encode(self, texts)
        if self.version.startswith("fastokens"):
            ids = ids.copy()
            ids[-1] ^= 1
        return ids, lengths

    monkeypatch.setattr("outpace.tokenizer.gpt2.Gpt2Tokenizer.encode_batch", wrong)
    monkeypatch.setattr(encode_module, "CHECKED", 1)
    with pytest.raises(Exception, match=r"fastokens.* and tiktoken.* different ids for document 3"):
        prepared(folder, ["a b c", "d e", "f g"], tokenizer="gpt2", val_fraction=0)


def test_an_engine_that_fails_its_self_test_is_replaced_loudly(monkeypatch, capsys):
    from outpace.tokenizer import engines, get_tokenizer

    def damaged(self, texts):
        return np.zeros(len(texts), np.uint16), np.ones(len(texts), np.int64)

    assert get_tokenizer("gpt2", "auto").version.startswith("fastokens")
    monkeypatch.setattr(engines.Fastokens, "encode_batch", damaged)
    assert get_tokenizer("gpt2", "auto").version.startswith("tiktoken")
    assert "fails its self-test (its ids are not GPT-2's)" in capsys.readouterr().err
    monkeypatch.setattr(engines.util, "find_spec", lambda name: None)
    assert get_tokenizer("gpt2", "auto").version.startswith("tiktoken")
    with pytest.raises(UsageError, match="not installed"):
        get_tokenizer("gpt2", "fastokens")


def test_both_engines_write_the_same_shards(tmp_path, texts):
    odd = [*texts[:40], "a\ud800b \u180e c", "x" * 70_000, " " * 70_000, "é漢😀 <|endoftext|>"]
    for engine in ("fastokens", "tiktoken"):
        prepare(
            Texts(odd), tmp_path / engine / "made", PrepareOptions(val_fraction=0.1),
            tokenizer_engine=engine,
        )  # fmt: skip
    a, b = (files(tmp_path / engine / "made") for engine in ("fastokens", "tiktoken"))
    assert {n: h for n, h in a.items() if n != "manifest.json"} == {
        n: h for n, h in b.items() if n != "manifest.json"
    }


def test_filters_on_length_and_on_columns(tmp_path):
    of = [(5, 0.9, "en"), (50, 0.5, "en"), (60, 0.95, "de"), (70, 0.99, "en"), (80, None, "en")]
    rows = [{"text": "word " * n, "language_score": s, "language": la} for n, s, la in of]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        folder = tmp_path / f"made-{name}"
        options = PrepareOptions(
            "bytes", 0, filters=("words >= 10", "language_score>=0.9", "language==en")
        )
        manifest = prepare(FilesSource([str(tmp_path / name)]), folder, options).manifest
        assert read_texts(folder, "train") == [rows[3]["text"]]
        assert manifest["documents"]["filtered_left_out"] == 4
        listed = [json.loads(line) for line in (folder / "removed.jsonl").open()]
        assert [line["document"] for line in listed] == [0, 1, 2, 4]
        options = PrepareOptions("bytes", 0, filters=("langauge==en",))
        with pytest.raises(DataError, match="did you mean language"):
            prepare(FilesSource([str(tmp_path / name)]), tmp_path / "other", options)


@pytest.mark.parametrize("text", ["", "words", "words>=many", "words==few", ">=3", "a=3"])
def test_what_is_no_filter_is_refused(text):
    with pytest.raises(UsageError, match="--filter"):
        parse_filter(text)


def test_every_document_that_is_left_out_is_listed_and_counted(folder, texts):
    documents = ["", texts[0], texts[1], texts[0], " ", texts[1]]
    manifest = prepared(folder, documents, val_fraction=0).manifest
    listed = [json.loads(line) for line in (folder / "removed.jsonl").open()]
    assert [(r["document"], r["why"]) for r in listed] == [
        (0, "empty"), (3, "exact copy"), (4, "empty"), (5, "exact copy")
    ]  # fmt: skip
    assert manifest["removed"] == {"file": "removed.jsonl", "lines": 4}


def test_a_set_of_many_hashes_is_a_set():
    rng = np.random.default_rng(0)
    known: set[int] = set()
    seen = Seen()
    for _ in range(40):
        hashes = rng.integers(0, 1 << 18, 8000).astype(np.uint64)
        fresh = seen.first_of_each(hashes)
        expected = []
        for h in hashes.tolist():
            expected.append(h not in known)
            known.add(h)
        assert fresh.tolist() == expected
    assert Seen(np.array([3, 1, 3], np.uint64)).contains(
        np.array([1, 2, 3], np.uint64)
    ).tolist() == [True, False, True]


def exact_share(text: str, earlier: list[str]) -> float:
    """Of a text's runs of five words, the share that stands in earlier texts."""

    def runs(t: str) -> set[tuple[str, ...]]:
        words = t.lower().split()
        return {tuple(words[n : n + 5]) for n in range(len(words) - 4)}

    before = set().union(*map(runs, earlier)) if earlier else set()
    mine = runs(text)
    return len(mine & before) / len(mine)


@pytest.mark.parametrize("changed", [0.0, 0.02, 0.05, 0.1, 0.3, 1.0])
def test_the_share_seen_is_about_the_true_one(changed):
    rng = random.Random(5)
    originals = [sentence(rng, 4000) for _ in range(4)]
    sketches = [sketch(text.encode()) for text in originals]
    near = NearDuplicates()
    near.shares(np.concatenate(sketches), np.array([len(s) for s in sketches]), range(4))
    words = (originals[1] + " " + originals[3]).split()
    words = [sentence(rng, 1) + "x" if rng.random() < changed else w for w in words]
    copy = ",  ".join(words).upper()
    true = exact_share(copy.replace(",", ""), originals)
    of_copy = sketch(copy.encode())
    share = near.shares(of_copy, np.array([len(of_copy)]), [0])[0]
    assert abs(share - true) < 0.15
    assert (share == 1) == (changed == 0)


def test_near_duplicates_are_left_out_after_their_original_only(folder):
    rng = random.Random(6)
    originals = [sentence(rng, rng.choice([12, 60, 700])) for _ in range(60)]
    copies = [" ".join(t.upper().split()) + " end" for t in originals]
    short = ["too few words", "too few", "words"]
    documents = originals + copies + short
    prepared(folder, documents, val_fraction=0, near_duplicates=True)
    assert read_texts(folder, "train") == originals + short
    listed = [json.loads(line) for line in (folder / "removed.jsonl").open()]
    assert [r["document"] for r in listed] == list(range(60, 120))
    assert {r["why"] for r in listed} == {"near duplicate"}


def test_the_sketches_of_documents_read_together_are_looked_up_together(folder, monkeypatch):
    real, looked_up = Seen.contains, []
    monkeypatch.setattr(
        Seen, "contains", lambda seen, hashes: looked_up.append(len(hashes)) or real(seen, hashes)
    )
    rng = random.Random(7)
    documents = [sentence(rng, 40) for _ in range(30)]
    prepared(folder, [*documents, documents[0] + " end"], val_fraction=0, near_duplicates=True)
    assert read_texts(folder, "train") == documents
    assert looked_up == [31, 31 * 16]  # the documents' hashes, then the sketches


@pytest.mark.shared
def test_the_novels_that_stand_twice_are_found(shared, tmp_path):
    """Three of them, and three that do not; chapters on one side, the whole on the other."""
    twice = ["Anon_Clara_1864", "Chesterton_Thursday_1908", "Forster_Howards_1910"]
    once = ["Barclay_Postern_1911", "Woolf_Night_1919", "Bennet_Babylon_1902"]
    titles = ("Clara Vaughan", "The man who was Thursday", "Howards End")
    with gzip.open(shared / "eltec_chapters.jsonl.gz", "rt", encoding="utf-8") as f:
        lines = [line for line in f if json.loads(line)["title"].startswith(titles)]
    text = tmp_path / "text"  # read by sorted path: the chapters first, so the novels go
    text.mkdir()
    (text / "0_chapters.jsonl").write_text("".join(lines), encoding="utf-8")
    for name in twice + once:
        shutil.copy(shared / "novels" / f"{name}.txt", text)
    options = PrepareOptions("bytes", 0, near_duplicates=True)
    prepare(FilesSource([str(text)]), tmp_path / "made", options, workers=1)
    listed = [json.loads(line) for line in (tmp_path / "made" / "removed.jsonl").open()]
    assert {Path(r["from"]).stem for r in listed} == set(twice)


def test_documents_with_thirteen_words_of_an_evaluation_are_left_out(tmp_path):
    rng = random.Random(7)
    questions = [{"ind": n, "ctx": sentence(rng, 20), "endings": [sentence(rng, 9)] * 4,
                  "source_id": f"wikihow~{n}"} for n in range(9)]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    clean = [sentence(rng, 300) for _ in range(20)]
    across = questions[4]["ctx"].split()[-8:] + questions[4]["endings"][0].split()[:5]
    planted = f"{clean[0]} {', '.join(across).upper()}! {clean[1]}"
    twelve = f"{clean[2]} {' '.join(across[:12])} {clean[3]}"
    options = PrepareOptions(
        "bytes", 0, decontaminate=(Benchmark.of("hellaswag", tmp_path / "q.jsonl"),)
    )
    prepare(Texts([*clean, planted, twelve]), tmp_path / "made", options)
    assert read_texts(tmp_path / "made", "train") == [*clean, twelve]
    [line] = [json.loads(line) for line in (tmp_path / "made" / "removed.jsonl").open()]
    assert line["why"] == "contaminated"
    assert line["detail"] == f"1 n-grams of hellaswag wikihow 4: {' '.join(across)}"


@pytest.mark.parametrize(
    ("name", "content"),
    [("q.jsonl", '\n{"text": "one two"}\n\n'), ("q.txt", "\none two\n \n")],
)
def test_blank_lines_among_the_questions_of_an_evaluation_are_no_questions(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    passages = Benchmark.of("own", tmp_path / name).passages()
    assert [(question, text.strip()) for question, text in passages] == [("own 1", "one two")]


def test_nanogpts_split_keeps_every_document_in_order(folder, texts):
    documents = [*texts, "", texts[0], *(f"more {n}" for n in range(3000))]
    dataset = prepared(folder, documents, split="nanogpt")
    n = len(documents)
    held_out = np.random.default_rng(2357).permutation(n)[: math.ceil(0.0005 * n)]
    assert read_texts(folder, "val") == [documents[i] for i in sorted(held_out)]
    assert read_texts(folder, "train") == [
        text for i, text in enumerate(documents) if i not in set(held_out.tolist())
    ]
    train, val = nanogpt_split.order(n)
    assert sorted([*train, *val]) == list(range(n))
    assert dataset.manifest["documents"]["exact_copies_left_out"] == 0
    with pytest.raises(UsageError, match="--split nanogpt"):
        prepared(folder.with_name("b"), documents, split="nanogpt", limit_tokens=5)


def test_a_chunk_of_lines_begins_and_ends_at_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("outpace.data.sources.files.LINES_BYTES", 100)
    rng = random.Random(2)
    texts = [sentence(rng, rng.choice([0, 1, 3, 40])) for _ in range(60)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + rng.choice(["\n", "\n\n"]) for t in texts))
    source = FilesSource([str(path)])
    assert len(source.chunks()) > 20
    assert texts_in(source) == texts
    lines = path.read_text().split("\n")
    bad = next(n for n, line in enumerate(lines) if n > 40 and line)
    lines[bad] = "{}"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"x\.jsonl: line {bad + 1} has no field 'text'"):
        texts_in(source)


def test_row_groups_are_chunks_and_know_their_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("outpace.data.sources.files.GROUPS_BYTES", 3000)
    texts = [f"text {n} " * 20 for n in range(200)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=7)
    chunks = FilesSource([str(tmp_path)]).chunks()
    assert len(chunks) > 5
    assert [len([t for b in c.read() for t in b.texts]) for c in chunks] == [
        c.documents for c in chunks
    ]
    assert [t for c in chunks for b in c.read() for t in b.texts] == texts


def test_a_separator_cuts_a_text_file(tmp_path, monkeypatch):
    monkeypatch.setattr("outpace.data.sources.readers.PIECE", 7)
    (tmp_path / "x.txt").write_text("one\n<|endoftext|>\ntwo<|endoftext|>three")
    source = FilesSource([str(tmp_path / "x.txt")], Reading(separator="<|endoftext|>"))
    assert texts_in(source) == ["one\n", "\ntwo", "three"]


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 1000])
def test_a_line_end_in_a_separator_is_one_of_the_text_as_it_will_be(tmp_path, monkeypatch, piece):
    monkeypatch.setattr("outpace.data.sources.readers.PIECE", piece)
    (tmp_path / "x.txt").write_bytes(b"a\r\nb\r\n\r\nc\n\nd\r\n\ne.\r.\n")
    source = FilesSource([str(tmp_path / "x.txt")], Reading(separator="\n\n"))
    assert texts_in(source) == ["a\nb", "c", "d", "e.\r.\n"]


def test_files_that_the_separator_does_not_cut_are_counted(tmp_path):
    for name, text in {"a.txt": "one--two", "b.txt": "one", "c.txt": "three"}.items():
        (tmp_path / name).write_text(text)
    dataset = prepare(
        FilesSource([str(tmp_path)], Reading(separator="--")),
        tmp_path / "made",
        PrepareOptions(tokenizer="bytes"),
    )
    notes = dataset.manifest["source"]["normalisation"]
    assert notes["files_without_the_separator"] == 2
    assert dataset.manifest["documents"]["source"] == 4


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.jsonl.gz"])
def test_a_document_beyond_the_limit_is_refused_in_bounded_memory(tmp_path, monkeypatch, name):
    for module in ("readers", "files"):
        monkeypatch.setattr(
            f"outpace.data.sources.{module}.MOST_DOCUMENT_BYTES", 3 << 20, raising=False
        )
    line = b'{"text": "short"}\n' + b'{"text": "' + b"long " * (1 << 20) + b'"}\n'
    data = gzip.compress(line) if name.endswith("gz") else line
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="more than 3 MiB") as caught:
        texts_in(FilesSource([str(tmp_path / name)]))
    assert caught.value.name == "DOCUMENT-SIZE"
    if "jsonl" in name:
        assert "line 2: byte 18 " in caught.value.what


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch, texts):
    (tmp_path / "x.txt").write_text("\n".join(texts) * 100)
    usage = __import__("shutil").disk_usage(tmp_path)
    monkeypatch.setattr(
        "outpace.data.forecast.shutil.disk_usage", lambda path: usage._replace(free=100_000)
    )
    with pytest.raises(StorageError, match=r"0\.0001 GB are free") as caught:
        prepare(FilesSource([str(tmp_path / "x.txt")]), tmp_path / "made", PrepareOptions())
    assert "--limit_tokens" in caught.value.do
    assert not (tmp_path / "made").exists()


def test_only_what_is_left_is_encoded_after_a_restart(texts):
    class Counting(Slow):
        def read(self, columns=()):
            for text in texts[:20]:
                yield Batch([text])

    found = [p.first for p in encode_chunk(Counting("x", 1), BYTES, skip=13)]
    assert found == list(range(13, 20))


def test_what_a_dataset_holds_is_told_from_its_shards(dataset, texts):
    held_out = set(read_texts(dataset.folder, "val"))
    mine = [1 + len(t.encode()) for t in texts if t not in held_out]
    lengths = lengths_of(dataset, "train")
    assert lengths is not None
    assert lengths.mean == pytest.approx(np.mean(mine))
    assert lengths.quantiles["most"] == max(mine)
    assert sum(count for _, _, count in lengths.bins) == len(mine)
    for low, high, count in lengths.bins:
        assert count == sum(low <= size < high for size in mine)
    for _, text in samples_of(dataset, "train", 10):
        assert any(t.startswith(text.removesuffix(" ...")) for t in texts)


def test_a_panic_of_a_library_ends_the_work_and_does_not_hang_it(monkeypatch):
    class Panic(BaseException):
        pass

    def panicking(*_):
        raise Panic

    monkeypatch.setattr("outpace.data.threads.encode", panicking)
    with pytest.raises(Panic):
        run(ThreadEngine(2), [Slow("a", 3)])


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Signalled])
def test_an_interrupt_of_the_consumer_at_work_waits_for_no_piece(monkeypatch, interrupt):
    """Faults come in their place. A signal's exception must not: another thread may hang."""
    consumer, hanging, let_go = threading.current_thread(), threading.Event(), threading.Event()
    let_go_in_time = []
    encode = encode_module.encode

    def hang_or_be_interrupted(*arguments):
        if threading.current_thread() is not consumer:
            hanging.set()
            let_go_in_time.append(let_go.wait(5))
        elif hanging.is_set():
            raise interrupt
        return encode(*arguments)

    monkeypatch.setattr("outpace.data.threads.encode", hang_or_be_interrupted)
    monkeypatch.setattr("outpace.data.threads.STOP_S", 0.01)
    with pytest.raises(interrupt):
        run(ThreadEngine(2), [Slow("a", 1000, 0.001)])
    assert not let_go_in_time
    let_go.set()


def test_a_signal_while_the_handlers_are_set_stops_the_work(tmp_path, monkeypatch):
    def signals():
        yield signal.SIGUSR1
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr("outpace.data.folder.stop_signals", signals)
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped, match="SIGUSR1"), stop_on_signals(tmp_path):
        pass
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_signal_that_becomes_another_error_on_its_way_still_stops_the_work(tmp_path):
    """threading's own locks do that when it comes between two of their lines."""
    with pytest.raises(Stopped, match="SIGUSR1"), stop_on_signals(tmp_path):
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            threading.Lock().release()


def test_a_signal_while_the_handlers_are_given_back_comes_too_late(tmp_path, monkeypatch):
    monkeypatch.setattr("outpace.data.folder.stop_signals", lambda: [signal.SIGHUP, signal.SIGUSR1])
    give_back = signal.signal
    with stop_on_signals(tmp_path):

        def interrupted(number, handler):
            if number == signal.SIGHUP:
                signal.raise_signal(signal.SIGUSR1)
            return give_back(number, handler)

        monkeypatch.setattr(signal, "signal", interrupted)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_few_bytes_wait_for_a_slow_consumer(monkeypatch):
    monkeypatch.setattr("outpace.data.threads.MOST_HELD", 5)
    expected = [(n, i, f"{n} {i}") for n in range(3) for i in range(9)]
    pieces = ThreadEngine(3)([(n, Slow(str(n), 9), 0) for n in range(3)], BYTES)
    found = [(0, 0, "0 0")] if next(pieces) else []
    time.sleep(0.1)
    found += [(n, p.first, bytes(p.ids.tolist()).decode()) for n, p in pieces]
    assert found == expected


def test_the_command_cleans_and_tells_what_a_dataset_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(1)
    texts = [sentence(rng, 60) for _ in range(30)]
    rows = [*texts, texts[3], texts[4] + " end", "few words"]
    Path("x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    flags = ["--near_duplicates", "--filter", "words>=20", "--val_fraction", "0.2"]
    flags += ["--output", "made", "--tokenizer", "bytes"]
    assert main(["prepare", "files", "--input", "x.jsonl", *flags]) == 0
    out = capsys.readouterr().out
    assert "1 exact copies, 0 empty documents, 1 filtered and 1 near duplicates left out" in out
    assert "are listed in made/removed.jsonl" in out
    assert main(["data", "info", "made", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["from"]["x.jsonl"]["documents"] == 30
    assert sum(count for _, _, count in found["train_lengths"]["bins"]) + sum(
        count for _, _, count in found["val_lengths"]["bins"]
    ) == 30  # fmt: skip
    assert main(["data", "info", "made"]) == 0
    page = capsys.readouterr().out
    assert "near duplicates left out: 1 documents" in page
    assert f"train: {found['tokens']['train']:,} tokens in " in page
    assert main(["prepare", "files", "--input", "x.jsonl", "--decontaminate", "lambda"]) == 3
    assert "--decontaminate lambda=FILE.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("good==true", [True]),
        ("good==True", [True]),
        ("good!=false", [True]),
        ("good!=true", [False]),
    ],
)
def test_a_column_of_truth_values_is_compared_with_true_and_false(text, kept):
    wanted = parse_filter(text)
    assert [value for value in (True, False, None) if wanted.keeps(value, "x")] == kept


@pytest.mark.parametrize(("text", "value"), [("good==yes", True), ("language==en", 3)])
def test_what_cannot_be_equal_is_not_compared(text, value):
    with pytest.raises(DataError, match="cannot be compared"):
        parse_filter(text).keeps(value, "x.parquet")


def test_what_an_interrupted_preparation_left_is_deleted_as_the_message_says(folder, texts):
    assert "hidden files included" in other_dataset(folder / "none", "x").do
    prepared(folder, [texts[0], texts[0], texts[1]], val_fraction=0)
    assert (folder / "removed.jsonl").exists()
    assert ".bin, .len, .json" in other_dataset(folder, "x").do
    for pattern in ("*.bin", "*.len", "*.json"):
        for path in folder.glob(pattern):
            path.unlink()
    prepared(folder, texts[:2], val_fraction=0)
    assert not (folder / "removed.jsonl").exists()


@pytest.mark.parametrize("empty", [0, 1000])
def test_nanogpts_split_of_token_columns_is_of_the_documents_that_are_read(tmp_path, empty):
    rows = [[n, n + 1] for n in range(2000)]
    rows[5] = [7, 50256, 9]
    pq.write_table(pa.table({"ids": rows + [[50256]] * empty}), tmp_path / "x.parquet")
    options = PrepareOptions(split="nanogpt")
    manifest = prepare(
        FilesSource([str(tmp_path / "x.parquet")], Reading("ids")), tmp_path / "d", options
    ).manifest
    documents = manifest["documents"]
    assert documents["source"] == documents["train"] + documents["val"] == 2001
    EXPORTS.load("nanogpt").export(open_dataset(tmp_path / "d"), tmp_path / "out")
