"""Documents out of files of every kind, and faults that name the file and the place in it."""

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from outpace.cli.main import main
from outpace.core.errors import DataError, UsageError
from outpace.data.sources import files
from outpace.data.sources.files import FilesSource, find_files
from outpace.data.sources.readers import Reading, read_parquet, read_texts

from .helpers import notes_on, texts_in

TEXTS = ["First text.\nTwo lines, é and 漢字.\n", "", "Third \u2028 text\r\nwith CRLF inside"]
SUFFIXES = [".gz", ".bz2", ".xz", ".zst"]


def compressed(suffix: str, data: bytes) -> bytes:
    match suffix:
        case ".gz":
            return gzip.compress(data)
        case ".bz2":
            return bz2.compress(data)
        case ".xz":
            return lzma.compress(data)
        case ".zst":
            return pa.Codec("zstd").compress(data, asbytes=True)
    return data


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts)).encode()


def source_of(path: Path, data: bytes, text_field: str = "text") -> FilesSource:
    path.write_bytes(data)
    return FilesSource([str(path)], Reading(text_field))


def documents_of(path: Path, data: bytes) -> list[str]:
    return texts_in(source_of(path, data))


def fault_of(path: Path, data: bytes, text_field: str = "text") -> DataError:
    source = source_of(path, data, text_field)
    with pytest.raises(DataError) as caught:
        texts_in(source)
    assert str(path) in caught.value.what
    return caught.value


@pytest.mark.parametrize("suffix", ["", *SUFFIXES, ".GZ"])
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".ndjson", ".TXT"])
def test_text_and_json_lines_are_read_through_every_compression(tmp_path, kind, suffix):
    if kind in (".jsonl", ".ndjson"):
        data, expected = jsonl(TEXTS), TEXTS
    else:
        data, expected = TEXTS[0].encode(), TEXTS[:1]
    path = tmp_path / f"input{kind}{suffix}"
    assert documents_of(path, compressed(suffix.lower(), data)) == expected


def test_a_datasets_card_is_no_document_and_a_texts_own_readme_is(tmp_path, capsys):
    card, rows = tmp_path / "README.md", tmp_path / "data" / "a.jsonl"
    rows.parent.mkdir()
    card.write_text("---\nconfigs: []\n---\nA dataset.\n")
    assert find_files([str(tmp_path)]) == [card]
    rows.write_bytes(jsonl(["one", "two"]))
    assert find_files([str(tmp_path)]) == [rows]
    assert "README.md is left out" in capsys.readouterr().err
    assert find_files([str(tmp_path), str(card)]) == [card, rows]


def test_a_dataset_below_its_own_text_is_found_again_by_the_same_command(tmp_path):
    for name in ("a.txt", "copy.txt"):
        (tmp_path / name).write_text("hello world\n")
    argv = ["--input", str(tmp_path), "--output", str(tmp_path / "tokens"), "--tokenizer", "bytes"]
    assert main(["prepare", "files", *argv]) == 0
    assert (tmp_path / "tokens" / "removed.jsonl").exists()
    assert main(["prepare", "files", *argv]) == 0


def test_parquet_rows_are_documents_and_missing_ones_empty(tmp_path):
    table = pa.table({"text": [*TEXTS, None] * 200, "other": range(800)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=77)
    source = FilesSource([str(tmp_path / "x.parquet")])
    assert texts_in(source) == [*TEXTS, ""] * 200
    assert texts_in(source) == [*TEXTS, ""] * 200


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_may_store_text_in_other_ways(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(TEXTS, kind)}), tmp_path / "x.parquet")
    assert texts_in(FilesSource([str(tmp_path / "x.parquet")])) == TEXTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize(
    "texts", [TEXTS * 50, [*TEXTS, None] * 50, [""] * 70], ids=["", "None", "0"]
)
def test_bytes_of_a_parquet_file_are_those_of_its_texts(tmp_path, kind, texts):
    """In batches that begin in the middle of what Arrow reads at once."""
    table = pa.table({"text": pa.array(texts, kind)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=97)
    batches = [b for c in FilesSource([str(tmp_path / "x.parquet")]).chunks() for b in c.read()]
    assert [t for b in batches for t in b.texts] == [t or "" for t in texts]
    for batch in batches:
        if batch.encoded is not None:
            assert [bytes(x) for x in batch.encoded] == [t.encode() for t in batch.texts]
    assert any(b.encoded is not None for b in batches) == (None not in texts)


@pytest.mark.shared
def test_a_real_novel_loses_its_mark_and_carriage_returns_and_nothing_else(shared):
    path = shared / "novels" / "Barclay_Postern_1911.txt"
    source = FilesSource([str(path)])
    [text] = texts_in(source)
    data = path.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert text.encode() == data[3:].replace(b"\r\n", b"\n")
    expected = {"byte_order_marks_removed": 1, "files_with_crlf_turned_to_lf": 1}
    assert notes_on(source) == expected


def test_marks_and_line_ends_are_counted_and_lone_carriage_returns_stay(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc")
    (tmp_path / "b.txt").write_bytes(b"plain \xef\xbb\xbf inside\n")
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x\\r\\ny"}\n')
    source = FilesSource([str(tmp_path)])
    assert texts_in(source) == ["a\nb\rc", "plain \ufeff inside\n", "x\r\ny"]
    expected = {"byte_order_marks_removed": 2, "files_with_crlf_turned_to_lf": 1}
    assert notes_on(source) == expected


def test_the_cost_of_small_files_grows_linearly_with_their_number(tmp_path, monkeypatch):
    for n in range(300):
        (tmp_path / f"{n:03d}.txt").write_text(f"text {n:03d}")
    asked = []
    size = files._size
    monkeypatch.setattr(files, "_size", lambda path: asked.append(path) or size(path))
    monkeypatch.setattr(files, "TEXTS_BYTES", 100 * 8)
    assert len(FilesSource([str(tmp_path)]).chunks()) == 3
    assert len(asked) == 2 * 300


def test_a_damaged_json_line_is_named_with_its_byte(tmp_path):
    data = '{"text": "é漢"}\n{"text": "é漢" x}\n'.encode()
    where = f"line 2 is not JSON (byte {data.index(b'x}')}: "
    assert where in fault_of(tmp_path / "x.jsonl", data).what


@pytest.mark.parametrize("line", ["[]", '["text"]', "3", "null", '"text"', "NaN"])
def test_a_json_line_that_is_no_object_is_named_with_its_number(tmp_path, line):
    data = f'{{"text": "a"}}\n{line}\n'.encode()
    assert "line 2 is " in (what := fault_of(tmp_path / "x.jsonl", data).what)
    assert "not a JSON object" in what


def test_a_missing_field_is_answered_with_the_nearest(tmp_path):
    data = b'{"content": "a", "id": 3}\n'
    fault = fault_of(tmp_path / "x.jsonl", data, "contents")
    assert (
        "line 1 has no field 'contents' (did you mean content?); it has content, id" in fault.what
    )
    assert "--text_field" in fault.do


@pytest.mark.parametrize("value", ["3", "null", '["a"]', '{"a": "b"}', "true", "NaN"])
def test_a_field_that_is_not_text_is_named_with_its_line(tmp_path, value):
    data = b'{"text": "a"}\n' + b'{"text": ' + value.encode() + b"}\n"
    assert "line 2: 'text' is" in fault_of(tmp_path / "x.jsonl", data).what


def test_a_missing_column_is_answered_with_the_nearest(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), path)
    fault = fault_of(path, path.read_bytes(), "contents")
    assert "no column 'contents' (did you mean content?); it has content, id" in fault.what


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [b"a", b"b"], [True, None]])
def test_a_column_that_is_not_text_is_named(tmp_path, values):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": values}), path)
    assert "row 1: 'text' is" in fault_of(path, path.read_bytes()).what


@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
def test_bytes_that_are_not_utf_8_in_a_text_column_are_what_errors_says(tmp_path, errors):
    path = tmp_path / "x.parquet"
    data = pa.array([b"fine", b"a\xff\xfe", None, b"too"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, data.buffers())
    pq.write_table(pa.table({"text": text, "n": [1, 2, 3, 4]}), path)
    if errors == "strict":
        what = fault_of(path, path.read_bytes()).what
        assert "row 2: byte 1 of its text is not UTF-8" in what
        return
    batches = list(read_parquet(path, Reading("text", errors=errors), ["n"]))
    kept = [1, 3, 4] if errors == "skip" else [1, 2, 3, 4]
    assert [n for b in batches for n in b.columns["n"]] == kept
    texts = ["fine", "a\ufffd\ufffd", "", "too"]
    assert [t for b in batches for t in b.texts] == [texts[n - 1] for n in kept]


def test_a_parquet_file_with_bytes_zeroed_is_a_fault(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"text {n}" * 9 for n in range(500)]}), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = bytes(64)
    fault_of(path, bytes(data))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_compressed_file_is_a_fault(tmp_path, suffix):
    data = compressed(suffix, jsonl([f"{n * 7919} text" for n in range(5000)]))
    rng = random.Random(2)
    for _ in range(20 if suffix != ".zst" else 0):  # pyarrow's zstd writes no checksum to fail
        at = rng.randrange(20, len(data) - 70)
        damaged = data[:at] + rng.randbytes(50) + data[at + 50 :]
        fault_of(tmp_path / f"x.txt{suffix}", damaged)
    fault_of(tmp_path / f"y.txt{suffix}", b"this is plain text, whatever its name says")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_compressed_json_file_holds_lines(suffix, tmp_path):
    """As C4's are named. A plain .json is left out of a folder."""
    (tmp_path / f"c4-train.00000-of-01024.json{suffix}").write_bytes(
        compressed(suffix, jsonl(TEXTS))
    )
    (tmp_path / "package.json").write_text("{}")
    assert texts_in(FilesSource([str(tmp_path)])) == TEXTS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_compressed_streams_are_one_text(tmp_path, suffix):
    data = compressed(suffix, b"one ") + compressed(suffix, b"") + compressed(suffix, b"two")
    assert documents_of(tmp_path / f"x.txt{suffix}", data) == ["one two"]


@pytest.mark.parametrize("zeros", [4, 4 * 2**19])
def test_zeros_may_stand_between_and_behind_xz_streams(tmp_path, zeros):
    """As stream padding, section 2.2 of the .xz file format."""
    data = (lzma.compress(b"one ") + bytes(zeros)) + (lzma.compress(b"two") + bytes(zeros))
    assert documents_of(tmp_path / "x.txt.xz", data) == ["one two"]


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_texts_about_as_long_as_a_reading_come_back_whole(tmp_path, suffix, size):
    text = "".join(random.Random(size).choices("abcdefgh\n", k=1000)) * (size // 1000 + 1)
    text = text[: size - 1] + "\n"
    assert documents_of(tmp_path / f"x.txt{suffix}", compressed(suffix, text.encode())) == [text]
    lines = jsonl([text[:300_000], text[: size - 100], ""])
    found = documents_of(tmp_path / f"x.jsonl{suffix}", compressed(suffix, lines))
    assert found == [text[:300_000], text[: size - 100], ""]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """/proc/self/mem opens, and fails on reading, even for root."""
    path = tmp_path / "x.txt"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"x\.txt: cannot be read: Input/output error"):
        texts_in(FilesSource([str(path)]))


def test_a_file_that_vanished_is_named(tmp_path):
    source = source_of(tmp_path / "x.txt", b"text")
    (tmp_path / "x.txt").unlink()
    with pytest.raises(DataError, match=r"x\.txt: cannot be read: No such file"):
        texts_in(source)


def test_a_forbidden_file_is_named(as_nobody):
    (as_nobody / "x.txt").write_text("text")
    (as_nobody / "x.txt").chmod(0)
    with pytest.raises(DataError, match=r"x\.txt: cannot be read: Permission denied"):
        texts_in(FilesSource([str(as_nobody)]))


def test_a_forbidden_folder_is_named_and_not_left_out(as_nobody):
    (as_nobody / "x.txt").write_text("text")
    (as_nobody / "sub").mkdir(0)
    with pytest.raises(DataError, match="sub: cannot be read: Permission denied"):
        find_files([str(as_nobody)])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files below folders, with some that are no text."""
    for name in ("b.txt", "a.md", "sub/c.jsonl", "sub/deep/d.txt.gz", "sub/x.bin", "sub/e.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(tree: Path, *patterns: str) -> list[str]:
    return [p.relative_to(tree).as_posix() for p in find_files([f"{tree}/{p}" for p in patterns])]


def test_folders_globs_and_paths_find_each_text_file_once_in_order(tree):
    everything = ["a.md", "b.txt", "sub/c.jsonl", "sub/deep/d.txt.gz"]
    assert found(tree, "") == found(tree, "", "*.md", "sub", "b.txt") == everything
    assert found(tree, "**/*.txt*") == ["b.txt", "sub/deep/d.txt.gz"]
    assert found(tree, "sub/c.jsonl", "a.md") == ["a.md", "sub/c.jsonl"]


def test_links_that_go_round_in_circles_are_not_followed_for_ever(tree):
    (tree / "sub" / "round").symlink_to(tree)
    (tree / "self.txt").symlink_to("self.txt")
    everything = ["a.md", "b.txt", "self.txt", "sub/c.jsonl", "sub/deep/d.txt.gz"]
    assert found(tree, "") == everything
    assert len(found(tree, "**/*.txt")) == 2
    with pytest.raises(DataError, match=r"self\.txt: cannot be read"):
        texts_in(FilesSource([str(tree / "self.txt")]))


def test_a_path_with_glob_characters_is_meant_as_it_is(tree):
    (tree / "set [v1]").mkdir()
    (tree / "set [v1]" / "x*.txt").touch()
    (tree / "set [v1]" / "xy.txt").touch()
    assert found(tree, "set [v1]/x*.txt") == ["set [v1]/x*.txt"]
    assert found(tree, "set [v1]") == ["set [v1]/x*.txt", "set [v1]/xy.txt"]


@pytest.mark.parametrize("pattern", ["none.txt", "*.none", "none/*"])
def test_a_pattern_without_a_match_is_named(tree, pattern):
    with pytest.raises(DataError, match="no file matches"):
        found(tree, "a.md", pattern)


def test_other_kinds_of_files_and_empty_folders_are_refused(tree):
    with pytest.raises(DataError, match=r"x\.bin is not one of"):
        found(tree, "sub/x.bin")
    with pytest.raises(DataError, match=r"e\.csv is not one of"):
        found(tree, "sub/e.*")
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match="no text files"):
        found(tree, "empty")
    with pytest.raises(UsageError, match="no --input"):
        find_files([])


def test_a_home_folder_is_expanded(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert [p.name for p in find_files(["~/*.txt"])] == ["b.txt"]


def test_what_is_not_read_of_a_folder_is_told(tmp_path, capsys):
    for name in ("a.txt", "b.csv", "c.csv", "d.pdf", "e"):
        (tmp_path / name).write_text("text")
    (tmp_path / "link").symlink_to(tmp_path)
    assert [p.name for p in find_files([str(tmp_path)])] == ["a.txt"]
    told = "not read: 2 .csv, 1 .pdf, 1 links to folders, 1 without a suffix"
    assert told in capsys.readouterr().err
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"2 \.csv, 1 \.pdf"):
        find_files([str(tmp_path)])


def test_bad_bytes_behind_a_separator_are_counted_in_the_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\nline\r\n---\r\ntwo\n\xff\n---\nthree")
    with pytest.raises(DataError, match="line 5: byte 19 is not UTF-8"):
        list(read_texts([path], Reading(separator="\n---\n"), []))
    path.write_bytes(b"one\n---\n\xff\xfetwo")  # no byte-order mark there
    (batch,) = read_texts([path], Reading(separator="\n---\n", errors="replace"), [])
    assert batch.texts == ["one", "\ufffd\ufffdtwo"]


def test_a_null_among_token_ids_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"ids": pa.array([[1, 2], [3, None, 4]])}), path)
    with pytest.raises(DataError, match="row 2: 'ids' contains null"):
        list(read_parquet(path, Reading("ids"), []))
