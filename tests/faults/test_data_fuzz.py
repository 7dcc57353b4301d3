"""Hundreds of damaged datasets and texts through the command line: exit 3, or 0 where the damage
does no harm, and never a traceback.
"""

import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import damaged_datasets, damaged_texts

from outpace.cli.main import main
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shards import open_dataset, verify_dataset
from outpace.data.sources.files import FilesSource

CASES = 200
IN_MANIFEST = ("file", "split", "tokens", "documents", "sha256", "lengths_sha256")
"""Keys of a shard's entry that decide what is read."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small shards."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} " + "gull " * (n % 37)}) + "\n" for n in range(120))
    )
    options = PrepareOptions(tokenizer="bytes", val_fraction=0.1, shard_tokens=2500)
    prepare(FilesSource([str(folder / "x.jsonl")]), folder / "made", options)
    assert len(list((folder / "made").glob("*.bin"))) == 6
    return folder / "made"


@pytest.fixture
def code_of(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], int]:
    """Run a command line in this process; only 0 and 3 are right, and one line for the latter."""

    def run(argv: list[str]) -> int:
        code = main(argv)
        out, err = capsys.readouterr()
        assert code in (0, 3), (argv, code, err)
        assert "Traceback" not in out + err
        assert err.count("error[") == (code == 3), err
        return code

    return run


def same_data(one: Path, other: Path) -> bool:
    """Whether two datasets hold the same tokens, by a reader of its own."""
    try:
        manifests = [json.loads((f / "manifest.json").read_bytes().decode()) for f in (one, other)]
        facts = [
            (m["format"], m["tokenizer"]["name"], m["tokenizer"]["vocab_sha256"],
             int(m["tokenizer"]["vocab_size"]), [[s[k] for k in IN_MANIFEST] for s in m["shards"]])
            for m in manifests
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False
    names = [p.name for p in other.glob("*_*.*")]
    return facts[0] == facts[1] and all(
        (one / n).is_file() and (one / n).read_bytes() == (other / n).read_bytes() for n in names
    )


def cases(made: Iterator[fuzz.Case], tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    for name, make in made:
        folder = tmp_path / name
        folder.mkdir()
        yield name, folder, make(folder)


def test_p1_p2_p3_p4_damaged_datasets_are_refused_and_harmless_damage_is_not(
    dataset, tmp_path, code_of
):
    refused = 0
    for name, folder, argv in cases(damaged_datasets(dataset, CASES), tmp_path):
        code = code_of(argv)
        refused += code == 3
        if code == 0:
            assert same_data(folder / "data", dataset), name
    assert refused > 0.8 * CASES


def unpacked(path: Path) -> bytes | None:
    """What a compressed file holds, None when damaged: by decompressors of whole buffers, which
    say where a stream ends, so that what follows is not passed over."""
    import bz2
    import lzma

    data, out = path.read_bytes(), b""
    while data:
        try:
            match path.suffix:
                case ".gz":
                    decoder = zlib.decompressobj(31)
                case ".bz2":
                    decoder = bz2.BZ2Decompressor()
                case ".xz":
                    decoder = lzma.LZMADecompressor()
                case _:
                    return data
            out += decoder.decompress(data)
        except (OSError, lzma.LZMAError, zlib.error, EOFError):
            return None
        if not decoder.eof:
            return None
        data = decoder.unused_data.lstrip(b"\0")
    return out


def texts_of(path: Path) -> list[str] | None:
    """Documents of an input file, None when it is not to be read strictly."""
    if path.suffix == ".parquet":
        try:
            return [v or "" for v in pq.read_table(path)["text"].to_pylist()]
        except (pa.ArrowException, OSError, ValueError, KeyError):
            return None
    data = unpacked(path)
    try:
        if data is None or ".jsonl" not in path.name:
            return None if data is None else [data.decode("utf-8-sig").replace("\r\n", "\n")]
        texts = []
        for line in io.BytesIO(data):
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                texts.append(json.loads(line.decode())["text"])
        "".join(texts).encode()  # no lone surrogates, nothing but text
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return texts


def test_p9_p13_p16_damaged_text_is_refused_or_read_as_it_is(tmp_path, code_of):
    refused = 0
    for name, folder, argv in cases(damaged_texts(CASES), tmp_path):
        code = code_of(argv)
        refused += code == 3
        made, [path] = folder / "made", folder.glob("input*")
        if code == 3:
            assert not made.exists(), name
            continue
        verify_dataset(open_dataset(made))
        if (
            argv[-1] == "strict" and path.suffix != ".zst"
        ):  # it has no checksum, and no other reader
            texts = texts_of(path)
            assert texts is not None, name
            tokens = sorted(
                t for p in made.glob("*.bin") for t in np.fromfile(p, "<u2", offset=1024)
            )
            kept = {t for t in texts if t.strip()}
            parts = tokens.count(256)
            assert parts in (len(kept), 2), name  # a single document is cut in two
            expected = sorted(b for t in kept for b in t.encode())
            assert [t for t in tokens if t < 256] == expected, name
    assert 0.3 * CASES < refused < 0.9 * CASES


def test_the_cases_are_the_same_for_the_same_seed(dataset, tmp_path):
    for made in (lambda: damaged_texts(30), lambda: damaged_datasets(dataset, 30)):
        seen = []
        for turn in ("one", "two"):
            for name, make in made():
                folder = tmp_path / f"{turn}-{name}"
                folder.mkdir()
                make(folder)
                files = sorted(p for p in folder.rglob("*") if os.path.lexists(p))
                seen.append(
                    [(p.name, p.read_bytes() if p.is_file() and not p.is_symlink() else b"")
                     for p in files]
                )  # fmt: skip
        assert seen[:30] == seen[30:]
