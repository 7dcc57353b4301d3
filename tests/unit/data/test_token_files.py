"""Token files of other people's scripts: recognised by content, read as documents, refused when
they are cut, of another type or of another vocabulary."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest

from outpace.cli.main import main
from outpace.core.errors import DataError
from outpace.data import forecast, token_files
from outpace.data.encode import Work, encode_chunk
from outpace.data.ledger import Ledger, Rules
from outpace.data.shards import open_dataset, verify_dataset
from outpace.data.sources import WholeSource
from outpace.data.sources.pretokenized import PretokenizedSource

END = 50256
TEXTS = [[1, 2, 3], [50255], [7] * 20, [0]]
BEFORE = [t for text in TEXTS for t in (END, *text)]
BEHIND = [t for text in TEXTS for t in (*text, END)]


def llmc(tokens, magic=20240520, version=1, count=None, kind="<u2") -> bytes:
    header = struct.pack("<3i", magic, version, len(tokens) if count is None else count)
    return header.ljust(1024, b"\0") + np.array(tokens, kind).tobytes()


def megatron(path, texts, code=8, kind="<u2"):
    """As megatron-core's indexed_dataset.py writes it."""
    path.write_bytes(np.array([t for x in texts for t in x], kind).tobytes())
    n = len(texts)
    size = np.dtype(kind).itemsize
    ends = np.cumsum([len(t) for t in texts])
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, n, n + 1)
        + struct.pack(f"<{n}i", *map(len, texts))
        + struct.pack(f"<{n}q", *((e - len(t)) * size for e, t in zip(ends, texts, strict=True)))
        + struct.pack(f"<{n + 1}q", *range(n + 1))
    )  # fmt: skip
    return path


def make(folder, kind):
    path = folder / ("x.npy" if "npy" in kind else "x.bin")
    if kind == "llm.c":
        path.write_bytes(llmc(BEFORE))
    elif kind == "nanoGPT" or kind == "OLMo npy":
        path.write_bytes(np.array(BEHIND, "<u2").tobytes())
    elif kind == "Megatron int32":
        megatron(path, [[*t, END] for t in TEXTS], 4, "<i4")
    elif kind == "Megatron":
        megatron(path, [[*t, END] for t in TEXTS])
    else:
        np.save(path, np.array(BEFORE, kind.split()[1]))
    return path


KINDS = ["llm.c", "nanoGPT", "OLMo npy", "Megatron", "Megatron int32", "npy uint16", "npy int64"]


def read(path):
    (chunk,) = PretokenizedSource([str(path)]).chunks()
    found = []
    for batch in chunk.read():
        ends = np.cumsum(batch.lengths)
        found += [batch.ids[e - n : e].tolist() for e, n in zip(ends, batch.lengths, strict=True)]
    return found


@pytest.mark.parametrize("piece", [1, 5, 1 << 22])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_documents(kind, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE_TOKENS", piece)
    assert read(make(tmp_path, kind)) == TEXTS


def test_a_folder_is_read_by_name_without_megatrons_indices(tmp_path):
    make(tmp_path, "Megatron")
    (tmp_path / "a.bin").write_bytes(llmc([END, 5]))
    (tmp_path / "z.npy").write_bytes(
        megatron(tmp_path / "q.bin", [[1]]).with_suffix(".idx").read_bytes()
    )
    (tmp_path / "notes.txt").write_text("x")
    source = PretokenizedSource([str(tmp_path)])
    assert [f.path.name for f in source.files] == ["a.bin", "q.bin", "x.bin"]
    assert source.describe() == {
        "files": ["a.bin", "q.bin", "x.bin"], "formats": ["Megatron", "llm.c"],
    }  # fmt: skip


def refused(path, match, name="BAD-INPUT"):
    with pytest.raises(DataError, match=match) as caught:
        read(path)
    assert caught.value.name == name and caught.value.exit_code == 3
    assert str(path.stem) in caught.value.what and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["llm.c", "nanoGPT", "npy int64", "Megatron int32"])
def test_ids_beyond_the_vocabulary_are_named_with_their_place(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PIECE_TOKENS", 3)
    path = make(tmp_path, kind)
    data = bytearray(path.read_bytes())
    width = {"npy int64": 8, "Megatron int32": 4}.get(kind, 2)
    data[-width:] = (50257).to_bytes(width, "little")
    path.write_bytes(data)
    refused(path, f"token {len(BEFORE) - 1} is 50257, beyond the vocabulary", "TOKEN-RANGE")


def test_other_vocabularies_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(llmc([128000, 5], 20240801, 7, kind="<u4"))
    refused(path, "llama-3", "TOKEN-RANGE")
    path = tmp_path / "y.npy"
    np.save(path, np.array([5, -1]))
    refused(path, "token 1 is -1", "TOKEN-RANGE")
    monkeypatch.setattr(token_files, "MOST_DOCUMENT_TOKENS", 100)
    path.write_bytes(bytes(400))
    refused(path, "without an end-of-text", "DOCUMENT-SIZE")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    for data, match in (
        (b"", "empty"),
        (b"odd", "whole number"),
        (llmc(BEFORE)[:-2], "declares"),
        (llmc(BEFORE, version=2), "version 2"),
        (llmc(BEFORE, count=-1), "declares"),
        (b"\x93NUMPY" + bytes(20), "NumPy"),
    ):
        path.write_bytes(data)
        refused(path, match)
    np.save(tmp_path / "y.npy", np.zeros((2, 3)))
    refused(tmp_path / "y.npy", "float64")
    np.save(tmp_path / "y.npy", np.arange(9, dtype=np.uint16))
    with open(tmp_path / "y.npy", "ab") as f:
        f.write(bytes(4))
    refused(tmp_path / "y.npy", "declares 9 tokens")
    np.save(tmp_path / "z.npy", np.array([{}], object), allow_pickle=True)
    refused(tmp_path / "z.npy", "NumPy")
    path = megatron(tmp_path / "m.bin", TEXTS)
    whole = path.with_suffix(".idx").read_bytes()
    for data, match in (
        (whole[:30], "not Megatron"),
        (whole[:-60], "too few"),
        (whole.replace(b"\x08", b"\x09", 1), "type 9"),
        (whole.replace(b"\x14\0\0\0", b"\x13\0\0\0", 1), "are not the"),
    ):
        path.with_suffix(".idx").write_bytes(data)
        refused(path, match)


@pytest.mark.parametrize("kind", ["llm.c", "nanoGPT", "Megatron"])
def test_the_command_makes_shards_of_them(kind, tmp_path, capsys):
    path = make(tmp_path, kind)
    argv = ["prepare", "pretokenized", "--input", str(path), "--output", str(tmp_path / "d")]
    assert main([*argv, "--val_fraction", "0"]) == 0
    dataset = open_dataset(tmp_path / "d")
    verify_dataset(dataset)
    got = np.empty(dataset.tokens("train"), np.uint16)
    dataset.stream("train").read(0, got)
    assert got.tolist() == BEFORE
    path.write_bytes(llmc([END, 50300]))
    assert main([*argv[:-1], str(tmp_path / "e")]) == 3
    assert "error[TOKEN-RANGE]" in capsys.readouterr().err
    assert main([*argv[:3], str(tmp_path / "*.gguf")]) == 3
    assert "error[NO-INPUT]" in capsys.readouterr().err
    assert main(["prepare", "pretokenized"]) == 2


def test_progress_through_a_token_file_is_told_in_shares_of_it(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(forecast, "note", said.append)
    monkeypatch.setattr(forecast, "LIVE", False)
    monkeypatch.setattr(forecast, "TOLD_EVERY_S", -1.0)
    monkeypatch.setattr(token_files, "PIECE_TOKENS", 10)
    path = tmp_path / "x.bin"
    path.write_bytes(np.array([*range(1, 9), END, 5] * 10, "<u2").tobytes())
    chunks = PretokenizedSource([str(path)]).chunks()
    with forecast.Progress(chunks) as progress:
        for piece in encode_chunk(chunks[0], Work()):
            progress.advance(0, piece, Ledger(Rules()))
    shares = [float(line.partition("%")[0]) for line in said]
    assert shares == sorted(shares) and 40 < shares[len(shares) // 2] < 60 and shares[-1] > 85
    assert not any("MB/s" in line for line in said)  # there is no text


def test_progress_through_a_text_of_unknown_size_is_told_without_a_share(monkeypatch):
    class Source(WholeSource):
        name = "two"

        def documents(self):
            return ["one", "two"]

    said: list[str] = []
    monkeypatch.setattr(forecast, "note", said.append)
    monkeypatch.setattr(forecast, "LIVE", False)
    monkeypatch.setattr(forecast, "TOLD_EVERY_S", -1.0)
    chunks = Source().chunks()
    with forecast.Progress(chunks) as progress:
        for piece in encode_chunk(chunks[0], Work()):
            progress.advance(0, piece, Ledger(Rules()))
    assert said and all(line.startswith("0 documents, 0 tokens, ") for line in said)


def test_the_time_left_after_a_restart_counts_only_what_was_done_since(monkeypatch):
    said: list[str] = []
    now = iter([0.0, 60.0])
    monkeypatch.setattr(forecast, "note", said.append)
    monkeypatch.setattr(forecast, "LIVE", False)
    monkeypatch.setattr(forecast, "TOLD_EVERY_S", -1.0)
    monkeypatch.setattr(forecast, "time", SimpleNamespace(monotonic=lambda: next(now)))
    chunks = [SimpleNamespace(size_bytes=100, text_bytes=100)] * 10
    with forecast.Progress(chunks) as progress:
        progress.begin(8)
        progress.advance(8, SimpleNamespace(sizes=np.array([50])), Ledger(Rules()))
    assert [line.partition(":")[0] for line in said] == ["85.0%"]
    assert said[0].endswith("about 3m00s left")  # half a chunk took a minute
