"""Exports read back by readers that share no code with the exporters: each format's definition in
its owner's words, and the owner's own reader where its checkout or package is there."""

import ast
import csv
import gzip
import json
import math
import os
import runpy
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from outpace.cli.main import main
from outpace.core.errors import DataError, UsageError
from outpace.data.exports import EXPORTS
from outpace.data.exports.llmc import MOST_BYTES
from outpace.data.shards import Dataset, open_dataset
from outpace.tokenizer.gpt2 import Gpt2Tokenizer

from .helpers import write_shard

END = 50256


def documents(count: int, seed: int = 3, empty: bool = False) -> list[list[int]]:
    """Random tokens, with the highest id among them; some documents empty if asked for."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0 if empty else 1, 9, count)
    return [[50255, *rng.integers(0, 50256, n - 1).tolist()] if n else [] for n in sizes]


def dataset_of(
    folder: Path, train: list[list[int]], val: list[list[int]], shard: int = 40, **manifest: object
) -> Dataset:
    """A folder with these documents in shards of about `shard` documents."""
    folder.mkdir(parents=True)
    entries = []
    for split, texts in (("train", train), ("val", val)):
        for number, at in enumerate(range(0, len(texts), shard)):
            part = [[END, *d] for d in texts[at : at + shard]]
            tokens = [t for d in part for t in d]
            entries.append(
                write_shard(folder, split, number, tokens, [len(d) for d in part], at + len(part))
            )
    content = {
        "format": 1, "name": "made", "unigram_entropy": 1.0,
        "tokenizer": {"name": "gpt2", "vocab_size": 50257, "version": "x",
                      "vocab_sha256": Gpt2Tokenizer.vocab_sha256},
        "tokens": {s: sum(e.tokens for e in entries if e.split == s) for s in ("train", "val")},
        "shards": [vars(e) for e in entries],
        **manifest,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(content))
    return open_dataset(folder)


@pytest.fixture(scope="module")
def texts() -> dict[str, list[list[int]]]:
    return {"train": documents(110), "val": documents(7, seed=4)}


@pytest.fixture(scope="module")
def made(texts, tmp_path_factory) -> Dataset:
    return dataset_of(tmp_path_factory.mktemp("made") / "d", texts["train"], texts["val"])


def exported(dataset: Dataset, output: Path, to: str) -> Path:
    paths = EXPORTS.load(to).export(dataset, output)
    assert sorted(paths) == sorted(p for p in output.rglob("*") if p.is_file())
    return output


def appended(texts: list[list[int]]) -> list[int]:
    return [t for text in texts for t in (*text, END)]


def test_nanogpt_reads_one_stream_with_end_of_text_behind_each_document(made, texts, tmp_path):
    out = exported(made, tmp_path / "out", "nanogpt")
    for split in ("train", "val"):
        # as in nanoGPT's train.py, get_batch
        data = np.memmap(out / f"{split}.bin", dtype=np.uint16, mode="r")
        assert data.tolist() == appended(texts[split])


def nanogpt_files(texts: list[list[int]]) -> dict[str, bytes]:
    """What nanoGPT's prepare.py writes, by its own steps: the split of `datasets`, then every
    document with end-of-text behind it."""
    count = len(texts)
    n_test = math.ceil(
        0.0005 * count
    )  # datasets, train_test_split: a float test_size is rounded up
    permutation = np.random.default_rng(2357).permutation(count)
    order = {"val": permutation[:n_test], "train": permutation[n_test : n_test + count - n_test]}
    return {
        split: np.array(appended([texts[i] for i in rows]), np.uint16).tobytes()
        for split, rows in order.items()
    }


@pytest.mark.parametrize("count", [3, 2001, 4001])
def test_nanogpts_own_split_gives_its_own_bytes(count, tmp_path, monkeypatch):
    from outpace.data import nanogpt_split
    from outpace.data.exports import raw

    monkeypatch.setattr(raw, "PIECE_TOKENS", 50)
    texts = documents(count, seed=count, empty=True)
    held_out = set(nanogpt_split.held_out(count).tolist())
    dataset = dataset_of(
        tmp_path / "d",
        [t for i, t in enumerate(texts) if i not in held_out],
        [t for i, t in enumerate(texts) if i in held_out],
        shard=700,
        options={"split": "nanogpt"},
        documents={"source": count},
    )
    out = exported(dataset, tmp_path / "out", "nanogpt")
    for split, data in nanogpt_files(texts).items():
        assert (out / f"{split}.bin").read_bytes() == data


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Path:
    """2,100 documents of text as parquet, with copies and an empty one among them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(5)
    words = ["pier", "Gull", " don't", "été", "\n\n", "漢字", "1848", "<|endoftext|>", "  "]
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(2100)]
    texts[7] = texts[2000] = texts[3]
    texts[11] = ""
    path = tmp_path_factory.mktemp("web") / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    return path


def prepared_and_exported(web: Path, folder: Path) -> Path:
    given = ["prepare", "files", "--input", str(web), "--output", str(folder / "d")]
    assert main([*given, "--split", "nanogpt", "--shard_tokens", "5000"]) == 0
    assert main(["data", "export", str(folder / "d"), str(folder / "out"), "--to", "nanogpt"]) == 0
    return folder / "out"


def test_text_prepared_with_nanogpts_split_is_nanogpts_own_file(web, tmp_path):
    import pyarrow.parquet as pq
    import tiktoken

    ours = tiktoken_gpt2(tiktoken)
    texts = [ours.encode_ordinary(t) for t in pq.read_table(web)["text"].to_pylist()]
    out = prepared_and_exported(web, tmp_path)
    for split, data in nanogpt_files(texts).items():
        assert (out / f"{split}.bin").read_bytes() == data


def tiktoken_gpt2(tiktoken: Any) -> Any:
    """GPT-2's encoding from the vocabulary beside the package, as tiktoken's own constructor makes
    it from a download."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks as ranks

    vocabulary = ROOT / "outpace" / "tokenizer" / "gpt2_vocab"
    return tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=50257,
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=ranks(str(vocabulary / "vocab.bpe"), str(vocabulary / "encoder.json")),
        special_tokens={"<|endoftext|>": END},
    )


@pytest.mark.exhaustive
@pytest.mark.skipif("OUTPACE_NANOGPT" not in os.environ, reason="names a checkout of nanoGPT")
def test_nanogpts_own_script_writes_the_same_bytes(web, tmp_path, monkeypatch):
    """Its data/openwebtext/prepare.py, word for word but for two numbers that a small dataset needs
    smaller, on a `datasets` that reads our file instead of the hub."""
    import tiktoken

    datasets = pytest.importorskip("datasets")
    script = (Path(os.environ["OUTPACE_NANOGPT"]) / "data/openwebtext/prepare.py").read_text()
    for old, new in (
        ("num_proc = 8", "num_proc = 1"),
        ("total_batches = 1024", "total_batches = 1"),
    ):
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "prepare.py").write_text(script)
    real, encoding = datasets.load_dataset, tiktoken_gpt2(tiktoken)
    monkeypatch.setattr(
        datasets, "load_dataset",
        lambda name, num_proc: real("parquet", data_files=str(web), cache_dir=str(tmp_path / "c")),
    )  # fmt: skip
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    runpy.run_path(str(tmp_path / "prepare.py"), run_name="__main__")
    out = prepared_and_exported(web, tmp_path)
    for split in ("train", "val"):
        assert (out / f"{split}.bin").read_bytes() == (tmp_path / f"{split}.bin").read_bytes()


def test_a_manifest_with_nanogpts_split_of_other_documents_is_refused(texts, tmp_path):
    dataset = dataset_of(
        tmp_path / "d", texts["train"], texts["val"],
        options={"split": "nanogpt"}, documents={"source": 5000},
    )  # fmt: skip
    with pytest.raises(DataError, match="nanoGPT's split"):
        EXPORTS.load("nanogpt").export(dataset, tmp_path / "out")


def test_llmc_reads_our_shards_under_its_own_names(made, tmp_path):
    out = exported(made, tmp_path / "out", "llmc")
    names = sorted(p.name for p in out.iterdir())
    assert names == [*(f"made_train_{n:06d}.bin" for n in range(3)), "made_val_000000.bin"]
    found = []
    for path in sorted(out.glob("made_train_*.bin")):  # as llm.c's dataloader.h globs
        data = path.read_bytes()
        magic, version, count, *rest = struct.unpack("<256i", data[:1024])
        assert (magic, version, any(rest), len(data)) == (20240520, 1, False, 1024 + 2 * count)
        found += struct.unpack(f"<{count}H", data[1024:])
        assert found[-count] == END
    shards = [s.file for s in made.shards if s.split == "train"]
    expected = b"".join((made.folder / f).read_bytes()[1024:] for f in shards)
    assert np.array(found, np.uint16).tobytes() == expected


@pytest.mark.skipif("OUTPACE_LLMC" not in os.environ, reason="names a checkout of llm.c")
def test_llmcs_own_reader_takes_them(made, texts, tmp_path):
    out = exported(made, tmp_path / "out", "llmc")
    source = (Path(os.environ["OUTPACE_LLMC"]) / "train_gpt2.py").read_text()
    wanted = ("_peek_data_shard", "_load_data_shard")
    body = [
        n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name in wanted
    ]
    assert len(body) == 2
    scope: dict[str, object] = {"np": np}
    exec(compile(ast.Module(body, []), "llm.c", "exec"), scope)
    first = out / "made_train_000000.bin"
    tokens = scope["_load_data_shard"](str(first))
    assert scope["_peek_data_shard"](str(first)) == len(tokens)
    assert tokens.tolist() == [t for text in texts["train"][:40] for t in (END, *text)]


def test_shards_too_large_for_llmc_are_refused(made, tmp_path, monkeypatch):
    from outpace.data.exports import llmc

    assert MOST_BYTES == 2**31
    monkeypatch.setattr(llmc, "MOST_BYTES", 1100)
    with pytest.raises(DataError, match="2 GiB"):
        llmc.export(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_megatrons_index_says_where_each_document_is(made, texts, tmp_path):
    out = exported(made, tmp_path / "out", "megatron")
    for split in ("train", "val"):
        index, data = (out / f"{split}.idx").read_bytes(), (out / f"{split}.bin").read_bytes()
        assert index[:9] == b"MMIDIDX\0\0"
        version, code, sequences, after = struct.unpack_from("<QBQQ", index, 9)
        assert (version, code, sequences) == (1, 8, len(texts[split]))
        lengths = struct.unpack_from(f"<{sequences}i", index, 34)
        pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
        borders = struct.unpack_from(f"<{after}q", index, 34 + 12 * sequences)
        assert len(index) == 34 + 12 * sequences + 8 * after
        assert list(borders) == list(range(sequences + 1))
        for at, size, text in zip(pointers, lengths, texts[split], strict=True):
            assert list(struct.unpack_from(f"<{size}H", data, at)) == [*text, END]


@pytest.mark.exhaustive  # its package takes half a minute to import
def test_megatrons_own_reader_takes_it(made, texts, tmp_path):
    reader = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    out = exported(made, tmp_path / "out", "megatron")
    found = reader.IndexedDataset(str(out / "train"))
    assert found.document_indices.tolist() == list(range(len(texts["train"]) + 1))
    assert [d.tolist() for d in found] == [[*t, END] for t in texts["train"]]


def test_olmo_core_reads_raw_tokens_and_where_documents_end(made, texts, tmp_path):
    out = exported(made, tmp_path / "out", "olmo")
    for split in ("train", "val"):
        # as in olmo_core/data/utils.py: a memory map, whatever the name says
        tokens = np.memmap(out / f"{split}.npy", mode="r", dtype=np.uint16)
        assert tokens.tolist() == appended(texts[split])
        with gzip.open(out / f"{split}.csv.gz", "rt", newline="") as f:
            spans = [(int(start), int(end)) for start, end, *_ in csv.reader(f)]
        assert [tokens[a:b].tolist() for a, b in spans] == [[*t, END] for t in texts[split]]


def test_a_hugging_face_dataset_has_a_row_a_document(made, texts, tmp_path):
    import pyarrow.parquet as pq
    import yaml

    out = exported(made, tmp_path / "out", "huggingface")
    card = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    (config,) = card["configs"]
    for entry, split in zip(config["data_files"], ("train", "val"), strict=True):
        assert entry["split"] == {"train": "train", "val": "validation"}[split]
        paths = sorted(out.glob(entry["path"]))
        assert len(paths) == {"train": 3, "val": 1}[split]
        rows = [r for p in paths for r in pq.read_table(p)["input_ids"].to_pylist()]
        assert rows == [[END, *t] for t in texts[split]]


def test_hugging_faces_own_library_takes_it(made, texts, tmp_path):
    datasets = pytest.importorskip("datasets")
    out = exported(made, tmp_path / "out", "huggingface")
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert found["train"]["input_ids"][:] == [[END, *t] for t in texts["train"]]
    assert len(found["validation"]) == len(texts["val"])


def test_row_groups_hold_a_bounded_number_of_tokens(made, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    from outpace.data.exports import huggingface

    monkeypatch.setattr(huggingface, "ROW_GROUP_TOKENS", 20)
    out = exported(made, tmp_path / "out", "huggingface")
    file = pq.ParquetFile(next((out / "data").glob("train-00000*")))
    sizes = [len(file.read_row_group(n)["input_ids"].combine_chunks().flatten())
             for n in range(file.num_row_groups)]  # fmt: skip
    assert len(sizes) > 5 and max(sizes) <= 20


@pytest.mark.parametrize("to", EXPORTS.names())
def test_nothing_is_overwritten_and_nothing_half_is_left(made, to, tmp_path, monkeypatch):
    out = exported(made, tmp_path / "out", to)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="exists"):
        EXPORTS.load(to).export(made, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    for number, name in enumerate(path.relative_to(out) for path in before):
        theirs = tmp_path / f"theirs-{number}" / name
        theirs.parent.mkdir(parents=True)
        theirs.write_text("theirs")
        with pytest.raises(UsageError, match="exists"):
            EXPORTS.load(to).export(made, tmp_path / f"theirs-{number}")
        assert theirs.read_text() == "theirs"
    copy = dataset_of(tmp_path / "d", documents(50), documents(5, seed=9), shard=25)
    (copy.folder / copy.shards[-1].file).unlink()
    with pytest.raises(DataError):
        EXPORTS.load(to).export(copy, tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.tmp"))
    assert not list((tmp_path / "cut").rglob("val*")) or to == "llmc"


def test_the_command(made, tmp_path, capsys):
    argv = ["data", "export", str(made.folder), str(tmp_path / "out"), "--to", "nanogpt"]
    assert main([*argv, "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["bytes"]
    assert sizes == {s + ".bin": 2 * made.tokens(s) for s in ("train", "val")}
    assert main(argv) == 2
    assert "error[OUTPUT-EXISTS]" in capsys.readouterr().err
    assert main(["data", "export", str(tmp_path), str(tmp_path / "x"), "--to", "olmo"]) == 3
    assert main(["data"]) == 0 and "export" in capsys.readouterr().out
    sys.stdout.flush()


def test_a_damaged_shard_is_not_exported(tmp_path, capsys, monkeypatch):
    dataset = dataset_of(tmp_path / "made", documents(50), documents(9))
    path = dataset.folder / dataset.shards[0].file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert main(["data", "export", str(dataset.folder), str(tmp_path / "out"), "--to", "olmo"]) == 3
    assert "DATA-DAMAGED" in capsys.readouterr().err and not (tmp_path / "out").exists()
