# ruff: noqa: F811  (fixtures are imported, and then named as arguments)
"""Faults of data and documents: bombs, archives, encodings, endless lines, damaged shards, and
datasets that change while training reads them.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.conftest import folder, run  # noqa: F401 (fixtures)
from cli.helpers import Result, Run
from conftest import TINY, final_hash, write_corpus
from harness import Child, assert_nothing_lost, call, logged, start

from outpace.cli.main import main
from outpace.core.errors import DataError
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shards import open_dataset
from outpace.data.sources.files import FilesSource
from outpace.data.verify import BackgroundCheck
from outpace.tokenizer import get_tokenizer, gpt2, shared

MIB = 1 << 20


@pytest.fixture
def refused(run: Run, folder: Path) -> Run:
    """Run what must end with exit 3 and this name, and leave the disk as it was."""

    def call(name: str, *argv: str | Path) -> Result:
        before = tree(folder)
        done = run(*argv)
        assert done.code == 3, done
        assert done.error.startswith(f"error[{name}]: "), done.error
        assert tree(folder) == before
        return done

    return call


@pytest.fixture
def tiny(folder: Path, tiny_dataset: Path) -> Path:
    """A prepared dataset that a test may damage."""
    return Path(shutil.copytree(tiny_dataset, folder / "tiny"))


def tree(folder: Path) -> dict[str, object]:
    """Every path below a folder and what it holds."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else None
        for p in sorted(folder.rglob("*"))
    }


def prepare_files(*inputs: str | Path, tokenizer: str = "bytes") -> list[str]:
    return ["prepare", "files", "--input", *map(str, inputs), "--output", "made",
            "--tokenizer", tokenizer, "--val_fraction", "0"]  # fmt: skip


def documents(made: Path, end: int = 256) -> list[list[int]]:
    """Documents of the training shards, without their first token, by the format's definition."""
    found: list[list[int]] = []
    for path in sorted(made.glob("train_*.bin")):
        for token in np.fromfile(path, "<u2", offset=1024).tolist():
            if token == end:
                found.append([])
            else:
                found[-1].append(token)
    return found


def texts(made: Path) -> list[str]:
    return [bytes(d).decode() for d in documents(made)]


def seal(dataset: Path) -> None:
    """Give the manifest the hashes of the shards as they are now."""
    path = dataset / "manifest.json"
    manifest = json.loads(path.read_text())
    for shard in manifest["shards"]:
        file = dataset / shard["file"]
        shard["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        lengths = file.with_suffix(".len").read_bytes()
        shard["lengths_sha256"] = hashlib.sha256(lengths).hexdigest()
    path.write_text(json.dumps(manifest))


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(data)


def flip(path: Path, at: int = -100) -> None:
    """Change one bit; unless told otherwise, to another token of the vocabulary."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# Compressed bombs (P14).

PEAK = """
import sys
from outpace.cli.main import main

def peak():
    lines = open("/proc/self/status")
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) / 1024

import numpy, tiktoken, pyarrow.parquet, outpace.data.prepare, outpace.data.sources.files
open("/proc/self/clear_refs", "w").write("5")
before = peak()
code = main(sys.argv[1:])
print(f"PEAK {peak() - before:.0f}")
sys.exit(code)
"""


def peak_of(folder: Path, argv: list[str], timeout: float = 120) -> tuple[int, str, float]:
    """Exit code, standard error, and MiB of memory that a command line took at most, in a process
    of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *argv],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert "PEAK" in done.stdout, done.stderr
    return done.returncode, done.stderr, float(done.stdout.split("PEAK")[1])


def packed_zeros(suffix: str, mib: int, unit: bytes = b"\0") -> bytes:
    """A stream of that many MiB of `unit`, in members of 32 MiB, or in one where these are not
    joined."""
    piece = unit * (32 * MIB // len(unit))
    match suffix:
        case ".gz":
            return gzip.compress(piece) * (mib // 32)
        case ".bz2":
            return bz2.compress(piece) * (mib // 32)
        case ".xz":
            return lzma.compress(piece, preset=0) * (mib // 32)
    codec = pa.Codec("zstd")
    return b"".join([codec.compress(piece, asbytes=True)] * (mib // 32))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_p14_a_bomb_stops_at_the_limit_in_bounded_memory(folder, kind, suffix):
    """256 MiB behind a few kilobytes, for JSON lines as one endless line."""
    (folder / f"x{kind}{suffix}").write_bytes(packed_zeros(suffix, 256))
    before = tree(folder)
    code, error, peak = peak_of(folder, prepare_files(f"x{kind}{suffix}"))
    assert code == 3, error
    assert f"error[BOMB]: x{kind}{suffix}: it unpacks to more than " in error
    assert peak < 200
    assert tree(folder) == before


def test_p14_many_small_lines_are_a_bomb_too(refused, folder):
    line = b'{"text": "' + b"the same line again " * 50 + b'"}\n'
    (folder / "x.jsonl.xz").write_bytes(packed_zeros(".xz", 96, line))
    refused("BOMB", *prepare_files("x.jsonl.xz"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_p14_text_that_shrinks_well_is_no_bomb(run, folder, monkeypatch, suffix):
    """Both limits must be passed: a small file may shrink as it likes, a big one to 1 : 200."""
    monkeypatch.setattr("outpace.data.sources.unpack.MOST_BYTES", 50_000)
    rng = np.random.default_rng(0)
    noise = rng.integers(97, 123, 40_000, np.uint8).tobytes()
    fixtures = {"small": b"a" * 50_000, "big": noise + b"a" * 3_000_000, "bomb": b"a" * 20_000_000}
    for name, data in fixtures.items():
        pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(
            suffix, lambda data: pa.Codec("zstd").compress(data, asbytes=True)
        )
        (folder / f"{name}.txt{suffix}").write_bytes(pack(data))
    assert run(*prepare_files(f"small.txt{suffix}", f"big.txt{suffix}")).code == 0
    assert sorted(map(len, texts(folder / "made"))) == [50_000, 3_040_000]
    done = run("prepare", "files", "--input", f"bomb.txt{suffix}", "--output", "other")
    assert (done.code, "error[BOMB]" in done.error) == (3, True)


def test_p14_a_bomb_in_a_bomb_is_not_opened(refused, folder):
    (folder / "x.txt.gz.gz").write_bytes(gzip.compress(packed_zeros(".gz", 128)))
    assert "is not one of" in refused("FILE-TYPE", *prepare_files("x.txt.gz.gz")).error


def test_p14_an_xz_header_that_asks_for_gigabytes_is_refused(refused, folder):
    """The size of the dictionary in the block's header: 4 GiB, of which liblzma would take all."""
    data = bytearray(lzma.compress(b"text " * 100))
    size = (data[12] + 1) * 4
    assert data[14:16] == b"\x21\x01"  # LZMA2, one byte of properties
    data[16] = 40
    data[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(data[12 : 12 + size - 4]))
    (folder / "x.txt.xz").write_bytes(data)
    assert "Memory usage limit" in refused("BAD-INPUT", *prepare_files("x.txt.xz")).error


def test_p14_a_zstandard_window_of_2_gib_is_refused(refused, folder):
    block = (5 << 3 | 1).to_bytes(3, "little") + b"hello"
    (folder / "x.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8" + block)
    assert "too much memory" in refused("BAD-INPUT", *prepare_files("x.txt.zst")).error


@pytest.mark.parametrize("kind", ["pages", "dictionary"])
def test_p14_a_parquet_bomb_stops_at_the_limit(folder, kind):
    """A column that says that it unpacks to 1 GiB; one that repeats the same megabyte."""
    if kind == "pages":
        schema = pa.schema([("text", pa.string())])
        with pq.ParquetWriter(
            folder / "x.parquet", schema, compression="zstd", use_dictionary=False
        ) as writer:
            table = pa.table({"text": ["a" * MIB] * 64})
            for _ in range(16):
                writer.write_table(table)
    else:
        values = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), ["a" * 100_000])
        pq.write_table(pa.table({"text": values}), folder / "x.parquet")
    code, error, peak = peak_of(folder, prepare_files("x.parquet"))
    assert code == 3, error
    assert "error[BOMB]: x.parquet: " in error
    assert peak < 200
    assert not (folder / "made").exists()


# Archives (P15).


def hostile_tar(mode: str, outside: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:

        def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", bits: int = 0o644):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, bits
            data = b"escaped" if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        member("../escaped.txt")
        member(str(outside / "absolute.txt"))
        member("link.txt", tarfile.SYMTYPE, str(outside / "mine.txt"))
        member("link.txt")
        member("hard.txt", tarfile.LNKTYPE, "../../mine.txt")
        member("device.txt", tarfile.CHRTYPE)
        member("setuid.txt", bits=0o4755)
        member("twice.txt")
        member("twice.txt")
    return buffer.getvalue()


def hostile_zip(outside: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("../escaped.txt", str(outside / "absolute.txt"), "ok.txt"):
            archive.writestr(name, "escaped")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["x.tar", "x.tar.gz", "x.tar.xz", "x.tar.bz2", "x.tar.zst", "x.tgz", "x.TAR", "x.zip"]
)
def test_p15_an_archive_is_refused_and_nothing_of_it_unpacked(refused, folder, monkeypatch, name):
    inside = folder / "inside"
    inside.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / "absolute.txt").write_text("mine too")
    monkeypatch.chdir(inside)
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(
        Path(name).suffix, "w"
    )
    data = hostile_zip(folder) if name.endswith("zip") else hostile_tar(mode, folder)
    (inside / name).write_bytes(
        pa.Codec("zstd").compress(data, asbytes=True) if name.endswith("zst") else data
    )
    assert "unpack it" in refused("ARCHIVE", *prepare_files(name)).error


def test_p15_an_archive_in_a_folder_of_text_is_left_alone(run, folder):
    (folder / "text").mkdir()
    (folder / "text" / "x.tar.xz").write_bytes(hostile_tar("w:xz", folder))
    (folder / "text" / "y.txt").write_text("text")
    assert run(*prepare_files("text")).code == 0
    assert texts(folder / "made") == ["text"]
    assert not list(folder.rglob("*escaped*"))


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/urandom"])
def test_p15_a_link_to_a_device_is_not_read(refused, folder, target):
    (folder / "x.txt").symlink_to(target)
    assert "not a regular file" in refused("BAD-INPUT", *prepare_files("x.txt")).error


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl.gz", "x.parquet"])
def test_p15_a_pipe_in_a_folder_is_not_waited_for(refused, folder, name):
    (folder / "text").mkdir()
    os.mkfifo(folder / "text" / name)
    refused("BAD-INPUT", *prepare_files("text"))


# Encodings (P9).

BAD_TEXT = {
    "latin-1.txt": (b"one\ntw\xe9\n", "line 2: byte 6 is not UTF-8", "one\ntw\ufffd\n"),
    "cut.txt": (b"one \xe6\xbc", "line 1: byte 4 is not UTF-8", "one \ufffd"),
    "surrogate.txt": (b"\xed\xa0\x80", "line 1: byte 0 is not UTF-8", "\ufffd" * 3),
    "bytes.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: byte 24 is not", "\ufffd"),
    "surrogate.jsonl": (
        b'\xef\xbb\xbf{"text": "ok \\ud83d\\ude00"}\n{"text": "a\\udc80b"}\n',
        "line 2: a lone surrogate at character 1 of 'text'",
        "a\ufffdb",
    ),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_p9_text_that_is_not_utf_8_is_refused_with_file_line_and_byte(refused, folder, name):
    data, where, _ = BAD_TEXT[name]
    (folder / name).write_bytes(data)
    error = refused("BAD-INPUT", *prepare_files(name)).error
    assert f"{name}: {where}" in error
    assert "--errors replace or skip" in error


@pytest.mark.parametrize("errors", ["replace", "skip"])
def test_p9_what_is_replaced_or_left_out_is_counted_and_told(run, folder, errors):
    (folder / "good.txt").write_text("good")
    for name, (data, _, _) in BAD_TEXT.items():
        (folder / name).write_bytes(data)
    done = run(*prepare_files("."), "--errors", errors)
    assert done.code == 0, done.error
    kept = ["good", "a", "ok 😀"]
    if errors == "replace":
        kept += [replaced for _, _, replaced in BAD_TEXT.values()]
    assert sorted(texts(folder / "made")) == sorted(kept)
    counts = json.loads((folder / "made" / "manifest.json").read_text())["source"]["normalisation"]
    what = {
        "replace": "documents_with_bad_characters_replaced", "skip": "bad_documents_left_out"
    }  # fmt: skip
    assert counts[what[errors]] == len(BAD_TEXT)
    assert sum(counts[w] for w in what.values()) == len(BAD_TEXT)
    assert f"{what[errors].replace('_', ' ')}: {len(BAD_TEXT)}" in done.out


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_p9_utf_16_is_recognised_and_not_made_into_rubbish(run, refused, folder, encoding):
    (folder / "x.txt").write_bytes("\ufeffone\ntwo".encode(encoding))
    for errors in ("strict", "replace"):
        error = refused("BAD-INPUT", *prepare_files("x.txt"), "--errors", errors).error
        assert "byte 0 is not UTF-8 (the file is UTF-16)" in error
        assert "iconv" in error
    (folder / "y.txt").write_text("good")
    assert run(*prepare_files("x.txt", "y.txt"), "--errors", "skip").code == 0
    assert texts(folder / "made") == ["good"]


def test_p9_controls_and_directions_come_back_as_they_were_and_crlf_as_lf(run, folder):
    odd = "nul \0 bell \a \u202eright to left\u202c \u05d0\u05d1 👩\u200d👩\u200d👧 \x1b[31m\x7f\n"
    (folder / "a.txt").write_bytes(odd.encode())
    (folder / "b.txt").write_bytes(b"one\r\ntwo\rthree\r\n")
    (folder / "c.jsonl").write_text(json.dumps({"text": odd + "2\r\n"}) + "\n")
    assert run(*prepare_files(".", tokenizer="gpt2")).code == 0
    decode = get_tokenizer("gpt2").decode
    found = [decode(d) for d in documents(folder / "made", end=50256)]
    assert found == [odd, "one\ntwo\rthree\n", odd + "2\r\n"]


def test_p9_errors_is_for_files_alone(run):
    done = run("prepare", "pydocs", "--errors", "skip")
    assert (done.code, "--errors is not for pydocs" in done.error) == (2, True)


def test_p9_counts_are_of_all_the_text_even_when_a_limit_ends_the_work_early(run, folder):
    lines = [json.dumps({"text": f"{n} " * 50}).encode() for n in range(50)]
    (folder / "x.jsonl").write_bytes(b"\n".join([*lines, b"\xff"]))
    assert run(*prepare_files("x.jsonl"), "--errors", "skip", "--limit_tokens", "500").code == 0
    source = json.loads((folder / "made" / "manifest.json").read_text())["source"]
    assert source["normalisation"]["bad_documents_left_out"] == 1


# Text that looks like a marker, no text, endless lines, malformed files (P10 to P13, P16).


def test_p10_a_literal_end_of_text_is_text(run, folder):
    odd = ["a <|endoftext|> b", "<|endoftext|>", "<|endoftext|>" * 3]
    for n, text in enumerate(odd[:2]):
        (folder / f"{n}.txt").write_text(text)
    (folder / "x.jsonl").write_text(json.dumps({"text": odd[2]}))
    assert run(*prepare_files(".", tokenizer="gpt2")).code == 0
    decode = get_tokenizer("gpt2").decode
    assert [decode(d) for d in documents(folder / "made", end=50256)] == odd
    assert run("prepare", "--verify", "made").code == 0  # which looks for one inside documents


def test_p11_empty_documents_are_left_out_and_counted(run, folder):
    (folder / "empty.txt").touch()
    (folder / "x.jsonl").write_text('{"text": ""}\n\n{"text": " \\n"}\n{"text": "text"}\n')
    pq.write_table(pa.table({"text": ["", None, "more"]}), folder / "x.parquet")
    done = run(*prepare_files("."))
    assert done.code == 0
    assert texts(folder / "made") == ["text", "more"]
    assert "5 empty documents left out" in done.out


@pytest.mark.parametrize(
    ("name", "data"),
    [("x.txt", b""), ("x.txt", b" \r\n\t"), ("x.jsonl", b""), ("x.jsonl", b'{"text": " "}\n\n')],
)
def test_p11_nothing_but_empty_documents_is_refused(refused, folder, name, data):
    (folder / name).write_bytes(data)
    refused("EMPTY", *prepare_files(name))


def test_p11_a_parquet_file_without_rows_is_refused(refused, folder):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "x.parquet")
    refused("EMPTY", *prepare_files("x.parquet"))


@pytest.mark.parametrize(
    ("mib", "unit"),
    [
        (20, "The same words without a line's end, again and again. "),
        (20, " "),
        (20, "ab"),
        pytest.param(60, "and no line's end ", marks=pytest.mark.exhaustive),
    ],
    ids=["words", "spaces", "letters", "60 MB"],
)
def test_p12_one_endless_line_takes_bounded_memory(folder, mib, unit):
    """A file is one document and held whole, with its tokens (a space is one, of 2 bytes, and they
    are joined twice); not the 50 times its size that a tokenizer takes for a text in one piece."""
    (folder / "x.txt").write_text("begin " + unit * (mib * MIB // len(unit)) + "end")
    argv = [*prepare_files("x.txt", tokenizer="gpt2"), "--workers", "1"]
    code, error, peak = peak_of(folder, argv, timeout=600)
    assert code == 0, error
    assert peak < 16 * mib
    lengths = np.array(get_tokenizer("gpt2").token_bytes())
    tokens = np.fromfile(folder / "made" / "train_000000.bin", "<u2", offset=1024)
    assert lengths[tokens].sum() == (folder / "x.txt").stat().st_size


def test_p12_a_million_of_one_character_do_not_stop_the_other_documents(run, folder):
    """GPT-2's own pattern panics on a million spaces, with an exception that is no Exception."""
    odd = {c: c * 1_000_000 + "x" for c in (" ", "^", "a", "\0", "\n", "é")}
    for n, text in enumerate(odd.values()):
        (folder / f"{n}.txt").write_text(text)
    (folder / "y.txt").write_text("the rest")
    assert run(*prepare_files(".", tokenizer="gpt2")).code == 0
    decode = get_tokenizer("gpt2").decode
    found = [decode(d) for d in documents(folder / "made", end=50256)]
    assert found == [*odd.values(), "the rest"]


MALFORMED = {
    "no object": b"[1]",
    "number": b"3",
    "cut": b'{"text": "a',
    "two": b'{"text": "a"}{}',
    "nested": b"[" * 10_000 + b"]" * 10_000,
    "deep": b'{"text": ' * 10_000,
    "not text": b'{"text": 1}',
    "null": b'{"text": null}',
    "NaN": b'{"text": NaN}',
    "long number": b'{"text": ' + b"1" * 9000 + b"}",
    "quote": b"{'text': 'a'}",
    "no field": b'{"body": "a"}',
    "control": b'{"text": "a\x01"}',
}


@pytest.mark.parametrize("what", MALFORMED)
def test_p13_a_malformed_line_is_named_or_left_out(run, refused, folder, what):
    (folder / "x.jsonl").write_bytes(b'{"text": "a"}\n\n' + MALFORMED[what] + b'\n{"text": "b"}')
    for errors in ("strict", "replace"):
        argv = [*prepare_files("x.jsonl"), "--errors", errors]
        assert "x.jsonl: line 3" in refused("BAD-INPUT", *argv).error
    done = run(*prepare_files("x.jsonl"), "--errors", "skip")
    assert (done.code, "bad documents left out: 1" in done.out) == (0, True)
    assert texts(folder / "made") == ["a", "b"]


@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
def test_p13_a_field_that_no_line_has_is_refused_whatever_errors_says(refused, folder, errors):
    """It is more likely a wrong --text_field, of which every line would be left out."""
    (folder / "x.jsonl").write_text('{"content": "a"}\n')
    argv = [*prepare_files("x.jsonl"), "--errors", errors, "--text_field", "contents"]
    assert "did you mean content?" in refused("BAD-INPUT", *argv).error


@pytest.mark.parametrize("size", [0, 3, 50, 0.25, 0.75, -9, -1])
def test_p13_a_truncated_parquet_file_is_refused(refused, folder, size):
    path = folder / "x.parquet"
    pq.write_table(pa.table({"text": [f"text {n}" * 9 for n in range(500)]}), path)
    whole = path.stat().st_size
    os.truncate(path, int(size * whole) if isinstance(size, float) else size % whole)
    refused("BAD-INPUT", *prepare_files("x.parquet"))


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_p16_a_compressed_file_cut_short_or_with_garbage_behind_is_refused(
    refused, folder, suffix, kind, damage
):
    lines = b"".join(b'{"text": "%d"}\n' % (n * 7919) for n in range(4000))
    data = {
        ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
        ".zst": lambda lines: pa.Codec("zstd").compress(lines, asbytes=True),
    }[suffix](lines)  # fmt: skip
    name = f"x{kind}{suffix}"
    for number in range(4):
        if damage == "truncated":
            bad = [data[:-1], data[: len(data) // 2], data[:30], b""][number]
        else:
            bad = data + [b"garbage", b"\0\0\0\1", data[:20], b"x" * 5000][number]
        (folder / name).write_bytes(bad)
        refused("BAD-INPUT", *prepare_files(name))


# Damaged shards (P1 to P4), and what checks them.


def train(run: Path, dataset: Path, *extra: str, steps: int = 3) -> list[str]:
    return ["train", *TINY, "--dataset", str(dataset), "--run_dir", str(run),
            "--max_steps", str(steps), *extra]  # fmt: skip


@pytest.mark.parametrize("size", [0, 3, 1023, 1024, 1025, -1, -2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_p1_a_truncated_shard_is_named_before_training(refused, folder, tiny, split, size):
    path = tiny / f"{split}_000000.bin"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    assert path.name in refused("DATA-DAMAGED", *train(folder / "run", tiny)).error
    assert path.name in refused("DATA-DAMAGED", "prepare", "--verify", tiny).error


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, struct.pack(">i", 20240520)),  # the other byte order
        (0, struct.pack("<i", 20240801)),  # shards of 32-bit tokens
        (0, bytes(4)),
        (4, struct.pack("<i", 7)),
        (8, struct.pack("<i", -1)),
        (8, struct.pack("<i", 2**31 - 1)),
        (8, struct.pack("<i", 0)),
    ],
)
def test_p2_a_wrong_header_is_named_before_training(refused, folder, tiny, offset, value):
    write_at(tiny / "train_000000.bin", offset, value)
    assert "train_000000.bin" in refused("DATA-DAMAGED", *train(folder / "run", tiny)).error
    seal(tiny)  # with a hash that fits, too
    assert "train_000000.bin" in refused("DATA-DAMAGED", "prepare", "--verify", tiny).error


def test_p2_tokens_of_32_bits_are_not_read_as_16(refused, folder, tiny):
    path = tiny / "train_000000.bin"
    data = path.read_bytes()
    wide = np.frombuffer(data[1024:], "<u2").astype("<u4").tobytes()
    path.write_bytes(data[:1024] + wide)
    refused("DATA-DAMAGED", *train(folder / "run", tiny))
    tokens = struct.pack("<i", len(wide) // 2)  # with a count that fits, and the manifest's as well
    path.write_bytes(data[:8] + tokens + data[12:1024] + wide)
    manifest = json.loads((tiny / "manifest.json").read_text())
    manifest["shards"][0]["tokens"] = manifest["tokens"]["train"] = len(wide) // 2
    (tiny / "manifest.json").write_text(json.dumps(manifest))
    seal(tiny)
    refused("DATA-DAMAGED", "prepare", "--verify", tiny)


@pytest.mark.parametrize("pattern", ["train_*.bin", "val_*.bin", "train_*.len", "val_*.len"])
def test_p3_a_flipped_bit_is_found_by_verify(refused, tiny, pattern):
    path = next(tiny.glob(pattern))
    flip(path, at=-2)
    assert path.name in refused("DATA-DAMAGED", "verify", tiny).error
    done = refused("DATA-DAMAGED", "prepare", "--verify", tiny, "--json")
    assert path.name in json.loads(done.out)["fault"]


def wait_for(check: BackgroundCheck) -> None:
    deadline = time.monotonic() + 60
    while not check.done:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("damage", ["flipped", "missing", "folder", "short"])
def test_p3_a_background_check_names_the_damaged_shard(folder, damage):
    write_corpus(folder / "text", 30)
    options = PrepareOptions(tokenizer="bytes", val_fraction=0.1, shard_tokens=3000)
    dataset = prepare(FilesSource([str(folder / "text")]), folder / "made", options)
    path = folder / "made" / "train_000003.bin"
    match damage:
        case "flipped":
            flip(path)
        case "short":
            os.truncate(path, 1500)
        case _:
            path.unlink()
            if damage == "folder":
                path.mkdir()
    check = BackgroundCheck([dataset])
    wait_for(check)
    for _ in range(2):
        with pytest.raises(DataError, match=r"train_000003\.bin") as caught:
            check.poll()
        assert caught.value.exit_code == 3
    check.close()
    quiet = BackgroundCheck([dataset], "val")
    wait_for(quiet)
    quiet.poll()


def test_p3_a_whole_dataset_passes_the_background_check_and_closing_ends_it(folder, tiny):
    check = BackgroundCheck([open_dataset(tiny)])
    wait_for(check)
    check.poll()
    check.close()
    big = folder / "big" / "train_000000.bin"  # sparse: a gigabyte to hash, none to store
    shutil.copytree(tiny, big.parent)
    os.truncate(big, 1 << 30)
    endless = BackgroundCheck(
        [open_dataset(tiny).__class__(big.parent, {}, open_dataset(tiny).shards)]
    )
    endless.close()
    assert endless.done
    endless.poll()


def test_p3_training_stops_at_a_flipped_bit_by_itself(folder, tiny):
    """With a checkpoint of what it did, or before its first step."""
    flip(tiny / "train_000000.bin")
    argv = train(folder / "run", tiny, "--save_every_steps", "5", steps=100_000)
    child = call(*argv, cwd=folder)
    assert child.code == 3, child.err
    assert "error[DATA-DAMAGED]" in child.err
    assert "train_000000.bin" in child.err
    assert "Traceback" not in child.err


def test_p4_a_token_beyond_the_vocabulary_is_named_with_its_place(folder, tiny, refused):
    """257 to 319 fit an embedding padded to 320, and would be trained on in silence."""
    count = (tiny / "train_000000.bin").stat().st_size // 2 - 512
    for token in range(100, count, 101):
        write_at(tiny / "train_000000.bin", 1024 + 2 * token, struct.pack("<H", 300))
    seal(tiny)
    error = refused("TOKEN-RANGE", "prepare", "--verify", tiny).error
    assert "train_000000.bin: token 100 is 300, beyond the vocabulary of 257" in error
    child = call(*train(folder / "run", tiny, steps=50), cwd=folder)
    assert child.code == 3, child.err
    assert "error[TOKEN-RANGE]" in child.err
    assert "train_000000.bin: token " in child.err


def test_p4_a_manifest_with_a_padded_vocabulary_is_refused(refused, folder, tiny):
    manifest = json.loads((tiny / "manifest.json").read_text())
    manifest["tokenizer"]["vocab_size"] = 320
    (tiny / "manifest.json").write_text(json.dumps(manifest))
    refused("TOKENIZER-CHANGED", *train(folder / "run", tiny))


def test_p4_a_document_that_does_not_begin_with_end_of_text_is_found(refused, tiny):
    path = tiny / "train_000000.bin"
    write_at(path, 1024, struct.pack("<H", 65))
    seal(tiny)
    assert (
        "train_000000.bin: at token 0 "
        in refused("DATA-DAMAGED", "prepare", "--verify", tiny).error
    )
    write_at(path, 1024, struct.pack("<3H", 256, 65, 256))
    seal(tiny)
    assert (
        "train_000000.bin: at token 2 "
        in refused("DATA-DAMAGED", "prepare", "--verify", tiny).error
    )


@pytest.mark.parametrize("change", ["longer", "missing", "zero"])
def test_p4_document_lengths_that_do_not_add_up_are_found(refused, tiny, change):
    path = tiny / "train_000000.len"
    lengths = np.fromfile(path, "<u4")
    if change == "longer":
        lengths[3] += 1
    elif change == "missing":
        lengths = lengths[1:]
    else:
        lengths[1], lengths[0] = 0, lengths[0] + lengths[1]
    lengths.tofile(path)
    seal(tiny)
    assert path.name in refused("DATA-DAMAGED", "prepare", "--verify", tiny).error


def test_verify_reads_only_and_says_what_is_there(run, tiny, folder):
    before = tree(folder)
    done = run("prepare", "--verify", tiny)
    assert (done.code, "whole, every hash is right" in done.out) == (0, True)
    found = json.loads(run("prepare", "--verify", tiny, "--json").out)
    assert found["fault"] is None
    assert found["tokens"]["train"] == len(np.fromfile(tiny / "train_000000.bin", "<u2")) - 512
    assert tree(folder) == before


@pytest.mark.parametrize("what", ["empty", "half", "foreign", "nothing", "file"])
def test_verify_of_what_is_no_dataset_says_so(refused, folder, tiny, what):
    place = folder / what
    name = "NO-DATASET"
    if what == "half":
        tiny.rename(place)
        manifest = json.loads((place / "manifest.json").read_text())
        journal = {"spec": manifest["spec"], "shards": manifest["shards"][:1]}
        (place / ".prepare.json").write_text(json.dumps(journal))
        (place / "manifest.json").unlink()
        name = "HALF-PREPARED"
    elif what == "file":
        place.write_text("mine")
    elif what != "nothing":
        place.mkdir()
        if what == "foreign":
            (place / "mine.txt").write_text("mine")
    refused(name, "prepare", "--verify", place)


# Too little data, data that changes under the training (P5 to P7), and on resume (R8, R9).


def test_p7_too_little_data_says_what_is_needed_and_what_is_there(refused, run, folder):
    (folder / "x.txt").write_text("some sixty characters of text, which are far too few for it.")
    assert run(*prepare_files("x.txt")).code == 0
    error = refused("TOO-LITTLE-DATA", *train(folder / "run", folder / "made")).error
    assert "a step needs 4 sequences of 32 tokens" in error
    assert "(61 tokens)" in error


@pytest.mark.parametrize("tokens", [0, 1])
def test_p7_a_shard_of_one_token_or_none_is_too_little(refused, folder, tiny, tokens):
    path = tiny / "train_000000.bin"
    os.truncate(path, 1024 + 2 * tokens)
    write_at(path, 8, struct.pack("<i", tokens))
    np.full(tokens, 1, "<u4").tofile(path.with_suffix(".len"))
    manifest = json.loads((tiny / "manifest.json").read_text())
    manifest["shards"][0] |= {"tokens": tokens, "documents": tokens}
    manifest["tokens"]["train"] = tokens
    (tiny / "manifest.json").write_text(json.dumps(manifest))
    seal(tiny)
    refused("TOO-LITTLE-DATA", *train(folder / "run", tiny))


def long_run(folder: Path, dataset: Path) -> Child:
    """A run that has saved at steps 5 and 10 and goes on."""
    argv = train(folder / "run", dataset, "--save_every_steps", "5", steps=100_000)
    child = start(*argv, cwd=folder)
    child.until_step(folder / "run", 12)
    assert child.code is None, child.err
    return child


@pytest.mark.parametrize("size", [0, 1024, 3000])
def test_p5_a_shard_truncated_under_the_training_is_exit_3_and_no_bus_error(folder, tiny, size):
    child = long_run(folder, tiny)
    os.truncate(tiny / "train_000000.bin", size)
    assert child.wait() == 3, child.err
    assert "error[DATA-DAMAGED]" in child.err
    assert "train_000000.bin: it became shorter while it was in use" in child.err
    assert "Traceback" not in child.err
    assert_nothing_lost(folder / "run")


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_p6_a_shard_deleted_or_replaced_under_the_training_never_gives_wrong_data(
    folder, tiny, tiny_dataset, change
):
    """It reads on through the open file, to the weights of a run that nobody disturbed."""
    steps = 60
    done = call(*train(folder / "straight", tiny_dataset, steps=steps), cwd=folder)
    assert done.code == 0, done.err
    child = start(*train(folder / "run", tiny, "--save_every_steps", "20", steps=steps), cwd=folder)
    child.until_step(folder / "run", 5)
    path = tiny / "train_000000.bin"
    if change == "deleted":
        path.unlink()
    else:
        data = path.read_bytes()
        (folder / "new").write_bytes(data[:1024] + data[:1023:-1])
        (folder / "new").replace(path)
    code = child.wait()
    assert logged(folder / "run") > 5
    if code == 0:
        assert final_hash(folder / "run") == final_hash(folder / "straight")
    else:
        assert code == 3, child.err
        assert "train_000000.bin" in child.err


def test_p6_a_shard_of_equal_length_in_anothers_place_is_not_read(tiny, tiny_dataset):
    stream = open_dataset(tiny).stream("train")
    path = tiny / "train_000000.bin"
    data = path.read_bytes()
    (tiny.parent / "new").write_bytes(data[:1024] + data[:1023:-1])
    (tiny.parent / "new").replace(path)
    with pytest.raises(DataError, match="it was replaced while it was in use"):
        stream.read(0, np.empty(8, np.uint16))


def test_a_dataset_is_not_prepared_into_a_run(run, resumable):
    (resumable / "x.txt").write_text("some text")
    before = tree(resumable)
    done = run("prepare", "files", "--input", "x.txt", "--output", "run")
    assert done.code == 2 and done.error.startswith("error[OUTPUT]: run contains a run")
    assert tree(resumable) == before


def test_p6_of_a_dataset_that_was_moved_the_remedy_is_not_only_to_delete_it(refused, folder, tiny):
    (tiny / "val_000000.bin").rename(folder / "elsewhere.bin")
    error = refused("DATA-DAMAGED", *train(folder / "run", tiny)).error
    assert "val_000000.bin: No such file or directory; do: restore it from a copy, or " in error


def test_p6_a_shard_missing_from_the_sequence_is_refused(refused, folder):
    write_corpus(folder / "text", 30)
    argv = [*prepare_files("text"), "--shard_tokens", "3000"]
    assert main(argv) == 0
    made = folder / "made"
    manifest = json.loads((made / "manifest.json").read_text())
    del manifest["shards"][2]
    (made / "manifest.json").write_text(json.dumps(manifest))
    refused("DATA-DAMAGED", *train(folder / "run", made))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a dataset and a run of 6 steps on it."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny_dataset, folder / "tiny")
    child = call(*train(folder / "run", folder / "tiny", steps=6), cwd=folder)
    assert child.code == 0, child.err
    return folder


@pytest.fixture
def resumable(stopped: Path, folder: Path) -> Path:
    """A copy of it."""
    shutil.copytree(stopped, folder, dirs_exist_ok=True)
    return folder


def test_r8_other_text_on_resume_is_refused(resumable, refused, run):
    write_corpus(resumable / "text", 61)
    assert run(*prepare_files("text")).code == 0
    argv = train(resumable / "run", resumable / "made", steps=12)
    assert "another dataset" in refused("DATA-CHANGED", *argv).error


def test_r8_an_extra_shard_on_resume_is_refused(resumable, refused):
    tiny = resumable / "tiny"
    for end in ("bin", "len"):
        shutil.copy(tiny / f"train_000000.{end}", tiny / f"train_000001.{end}")
    manifest = json.loads((tiny / "manifest.json").read_text())
    manifest["shards"].append(manifest["shards"][0] | {"file": "train_000001.bin"})
    manifest["tokens"]["train"] *= 2
    (tiny / "manifest.json").write_text(json.dumps(manifest))
    refused("DATA-CHANGED", *train(resumable / "run", tiny, steps=12))


def test_r8_a_renamed_shard_on_resume_is_refused_and_named(resumable, refused):
    tiny = resumable / "tiny"
    (tiny / "train_000000.bin").rename(tiny / "train_000001.bin")
    error = refused("DATA-DAMAGED", *train(resumable / "run", tiny, steps=12)).error
    assert "train_000000.bin" in error


def test_r8_a_flipped_bit_of_the_same_size_on_resume_is_found(resumable):
    tiny = resumable / "tiny"
    before = (tiny / "train_000000.bin").stat()
    flip(tiny / "train_000000.bin")
    os.utime(tiny / "train_000000.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    child = call(*train(resumable / "run", tiny, steps=100_000), cwd=resumable)
    assert child.code == 3, child.err
    assert "train_000000.bin" in child.err


def test_r8_a_moved_and_touched_dataset_is_the_same(resumable):
    """Neither its path nor its times decide, but what it holds."""
    elsewhere = resumable / "elsewhere"
    (resumable / "tiny").rename(elsewhere)
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    child = call(*train(resumable / "run", elsewhere, steps=8), cwd=resumable)
    assert child.code == 0, child.err
    assert logged(resumable / "run") == 8


def test_r9_another_tokenizer_on_resume_is_refused(resumable, refused, run):
    write_corpus(resumable / "text", 60)
    assert run(*prepare_files("text", tokenizer="gpt2")).code == 0
    refused("DATA-CHANGED", *train(resumable / "run", resumable / "made", steps=12))


def test_r9_a_dataset_of_another_vocabulary_is_refused(resumable, refused):
    path = resumable / "tiny" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tokenizer"]["vocab_sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    argv = train(resumable / "run", resumable / "tiny", steps=12)
    assert "another bytes vocabulary" in refused("TOKENIZER-CHANGED", *argv).error
    manifest["tokenizer"]["name"] = "gtp2"
    path.write_text(json.dumps(manifest))
    assert "did you mean gpt2?" in refused("DATA-DAMAGED", *argv).error


def test_r9_one_edited_merge_is_refused(refused, folder, monkeypatch):
    shutil.copytree(gpt2.VOCAB_FOLDER, folder / "vocab")
    merges = (folder / "vocab" / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    merges[100], merges[101] = merges[101], merges[100]
    (folder / "vocab" / "vocab.bpe").write_text("\n".join(merges), encoding="utf-8")
    (folder / "x.txt").write_text("text")
    monkeypatch.setattr(gpt2, "VOCAB_FOLDER", folder / "vocab")
    gpt2._built.cache_clear()
    shared.release()  # a preparation that was refused early leaves it
    try:
        error = refused("VOCABULARY", *prepare_files("x.txt", tokenizer="gpt2")).error
    finally:
        gpt2._built.cache_clear()
    assert "vocab.bpe is not OpenAI's" in error
