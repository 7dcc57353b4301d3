"""Damaged datasets and damaged text, the same for the same seed: each case is a name and a function
that writes it into a folder and returns the command line to be run on it.
"""

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

Case = tuple[str, Callable[[Path], list[str]]]
ODD_VALUES: list[Any] = [
    None, True, -1, 0, 3, 2**31, 2**64, 1e308, float("nan"), float("inf"), "", "x", "../x", "\0",
    "train_000000.bin", [], {}, [None], {"a": 1}, [[]], "9" * 5000,
]  # fmt: skip
ODD_BYTES = [b"\0" * 64, b"\xff" * 64, b"\xef\xbb\xbf", b"\xff\xfe", b"[" * 10_000, b'"', b"\n"]


def damaged_datasets(dataset: Path, count: int, seed: int = 20260103) -> Iterator[Case]:
    """Copies of a prepared dataset with one to three things wrong; to be verified."""
    kinds = {
        "flip": _flip, "cut": _cut, "grow": _grow, "zero": _zero, "header": _header, "swap": _swap,
        "missing": _missing, "other-kind": _other_kind, "manifest-value": _manifest_value,
        "manifest-bytes": _manifest_bytes,
    }  # fmt: skip
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]

        def make(folder: Path, number: int = number, damage: Any = kinds[kind]) -> list[str]:
            rng = random.Random(seed * 1000 + number)
            copy = shutil.copytree(dataset, folder / "data")
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                damage(copy, rng)
            return ["prepare", "--verify", str(copy)]

        yield f"dataset-{number:03d}-{kind}", make


def damaged_texts(count: int, seed: int = 20260104) -> Iterator[Case]:
    """Input files with something wrong; to be prepared into `folder`/made."""
    endings = [f"{kind}{packed}" for kind in (".txt", ".jsonl") for packed in ("", *PACK)]
    endings += [".jsonl", ".txt", ".parquet"]
    for number in range(count):
        ending = endings[number % len(endings)]

        def make(folder: Path, number: int = number, ending: str = ending) -> list[str]:
            rng = random.Random(seed * 1000 + number)
            path = folder / f"input{ending}"
            path.write_bytes(_text(ending, rng))
            return [
                "prepare", "files", "--input", str(path), "--output", str(folder / "made"),
                "--tokenizer", "bytes", "--workers", "1",
                "--errors", rng.choice(["strict", "strict", "replace", "skip"]),
            ]  # fmt: skip

        yield f"text-{number:03d}{ending}", make


# Damage to bytes.


def mangled(data: bytes, rng: random.Random) -> bytes:
    """`data`, not empty, with one thing wrong."""
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data + rng.randbytes(rng.randint(1, 40))
        case 3:
            return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]
        case 4:
            return data[:at] + rng.choice(ODD_BYTES) + data[at:]
    return data[:at] + data[at + rng.randint(1, 40) :]


def _pick(folder: Path, rng: random.Random, pattern: str = "*_*.*") -> Path:
    return rng.choice(sorted(p for p in folder.glob(pattern) if p.is_file() and p.stat().st_size))


def _flip(folder: Path, rng: random.Random) -> None:
    path = _pick(folder, rng)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut(folder: Path, rng: random.Random) -> None:
    path = _pick(folder, rng)
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, size - 1, size // 2, rng.randrange(size)]))


def _grow(folder: Path, rng: random.Random) -> None:
    with _pick(folder, rng).open("ab") as f:
        f.write(rng.randbytes(rng.randint(1, 3000)))


def _zero(folder: Path, rng: random.Random) -> None:
    path = _pick(folder, rng)
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    path.write_bytes(data)


def _header(folder: Path, rng: random.Random) -> None:
    path = _pick(folder, rng, "*.bin")
    with path.open("r+b") as f:
        f.seek(4 * rng.randrange(3))
        f.write(rng.choice([rng.randbytes(4), b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"]))


def _swap(folder: Path, rng: random.Random) -> None:
    one, other = _pick(folder, rng), _pick(folder, rng)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def _missing(folder: Path, rng: random.Random) -> None:
    _pick(folder, rng, "*").unlink()


def _other_kind(folder: Path, rng: random.Random) -> None:
    path = _pick(folder, rng, "*")
    path.unlink()
    match rng.randrange(5):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to(path.name)
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.symlink_to("/proc/self/mem")


def _manifest_value(folder: Path, rng: random.Random) -> None:
    """Another value, or none, somewhere in the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    if not isinstance(manifest, dict):
        return
    place: Any = manifest
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        match rng.randrange(3):
            case 0:
                del place[key]
            case 1 if isinstance(place, list):
                place.append(place[key])
            case _:
                place[key] = rng.choice(ODD_VALUES)
        break
    path.write_text(json.dumps(manifest))


def _manifest_bytes(folder: Path, rng: random.Random) -> None:
    path = folder / "manifest.json"
    path.write_bytes(mangled(path.read_bytes() or b" ", rng))


# Damaged text.

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
ODD_LINES = [
    b"", b"{", b"[]", b"null", b"3", b"NaN", b'"text"', b"{}", b'{"text": 3}', b'{"text": null}',
    b'{"text": NaN}', b'{"text": "\\ud800"}', b'{"text": "\\udfff\\ud800"}', b'{"text": "\xff"}',
    b'{"text": ["a"]}', b'{"text": {"text": "a"}}', b'{"text": "a"} {"text": "b"}',
    b'{"text": "a",}', b"{'text': 'a'}", b'{"text": "a\nb"}', b'{"text": "a" "b"}',
    b"[" * 20_000, b'{"text":' * 20_000, b"9" * 5000, b"\0", b"\xef\xbb\xbf", b"\xff\xfe{\0",
    b'{"Text": "a"}', b'{"text": "\\u0000"}', b'{"text": "' + b" " * 5000,
]  # fmt: skip


def _text(ending: str, rng: random.Random) -> bytes:
    words = [
        rng.choice(["gull", "é", "漢字", "rail\t", "\u202eowed", "😀", "a" * 90])
        for _ in range(200)
    ]
    text = " ".join(words)
    if ending == ".parquet":
        sink = pa.BufferOutputStream()
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": [text, text[:100], None]}), sink)
        return mangled(sink.getvalue().to_pybytes(), rng)
    plain = text.encode()
    if ending.startswith(".jsonl"):
        lines = [json.dumps({"text": text[n:]}, ensure_ascii=False).encode() for n in range(5)]
        if rng.random() < 0.6:
            lines.insert(rng.randrange(6), rng.choice(ODD_LINES))
        plain = b"\n".join(lines)
    pack = PACK.get(Path(ending).suffix)
    if rng.random() < 0.3:
        plain = mangled(plain, rng)
    if pack is None:
        return mangled(plain, rng) if rng.random() < 0.5 else plain
    return mangled(pack(plain), rng) if rng.random() < 0.8 else pack(plain)
