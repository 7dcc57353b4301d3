"""Models damaged in some 400 ways, deterministically: checkpoints, Hugging Face folders, nanoGPT's
.pt files. Each is a name, a function that makes it in a folder and returns the command line to try,
and the exit codes that are right. Whatever happens, it is one of them, and never 1.
"""

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch

from outpace.config.presets import GPT2Shape
from outpace.interop.huggingface import transformers_model
from outpace.model.gpt2 import GPT2

SEED = 20260301
MODEL, STATE, MANIFEST, CONFIG = "model.safetensors", "state.json", "MANIFEST.json", "config.json"
REFUSED = frozenset({4})
LENIENT = frozenset({0, 4, 6})
"""No checksum guards these bytes: another number in a weight is a model, if not that one."""
SHAPE = GPT2Shape(1, 2, 32, 64, 257)
CANARY = "canary"
"""A file in the case's folder that only code from the model would make."""


class Case(NamedTuple):
    """One damaged model."""

    name: str
    make: Callable[[Path], list[str]]
    """(empty folder) -> the command line, with paths below that folder."""
    codes: frozenset[int]


def originals(folder: Path) -> Path:
    """`hf`, `ckpt` and `nano/ckpt.pt` below `folder`: the same tiny model thrice, all sound."""
    model = GPT2(SHAPE)
    model.init_weights(torch.Generator().manual_seed(SEED))
    weights = {k: v.detach() for k, v in model.state_dict().items()}
    transformers_model(weights, SHAPE).save_pretrained(folder / "hf")
    from outpace.cli.main import main

    assert main(["convert", str(folder / "hf"), str(folder / "ckpt"), "--to", "outpace"]) == 0
    (folder / "nano").mkdir()
    torch.save(nanogpt(weights), folder / "nano" / "ckpt.pt")
    return folder


def nanogpt(weights: dict[str, Any]) -> dict[str, Any]:
    """What nanoGPT saves."""
    model = OrderedDict((f"_orig_mod.transformer.{k}", v.clone()) for k, v in weights.items())
    wte = weights["wte.weight"][: SHAPE.vocab_size].clone()
    model["_orig_mod.transformer.wte.weight"] = model["_orig_mod.lm_head.weight"] = wte
    arguments = {
        "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 64, "bias": True, "vocab_size": 257,
        "dropout": 0.0,
    }  # fmt: skip
    best = torch.tensor(3.0)
    return {"model": model, "model_args": arguments, "iter_num": 9, "best_val_loss": best}


def cases(good: Path) -> Iterator[Case]:
    """All of them. `good` is what `originals` made."""
    yield from _checkpoints(good / "ckpt")
    yield from _folders(good / "hf")
    yield from _pickles(good / "nano" / "ckpt.pt")


def sample(path: Path) -> list[str]:
    return ["sample", str(path), "--max_new_tokens", "2", "--device", "cpu"]


# Damage to bytes.


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at // 8 % len(data)] ^= 1 << at % 8
    path.write_bytes(data)


def spots(path: Path, count: int) -> list[int]:
    """Bits of a file, some in its head, the others anywhere."""
    bits = path.stat().st_size * 8
    draw = random.Random(SEED)
    head = [draw.randrange(min(bits, 8 * 2000)) for _ in range(count // 3)]
    return head + [draw.randrange(bits) for _ in range(count - len(head))]


def cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def _damages(file: Path, flips: int) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """(name, what to do to a copy of the file)."""
    for i, at in enumerate(spots(file, flips)):
        yield f"flip-{i}", lambda p, at=at: flip(p, at)
    for part in (0, 0.0001, 0.01, 0.5, 0.99, 0.9999):
        yield f"cut-{part}", lambda p, part=part: cut(p, part)
    yield "longer", lambda p: p.write_bytes(p.read_bytes() + b"\0" * 64)
    yield "zeros", lambda p: p.write_bytes(b"\0" * p.stat().st_size)
    yield "noise", lambda p: p.write_bytes(random.Random(SEED).randbytes(p.stat().st_size))
    yield "html", lambda p: p.write_text("<html>sign in</html>")
    yield "gone", Path.unlink
    yield "folder", lambda p: (p.unlink(), p.mkdir())
    yield "pickle", lambda p: p.write_bytes(pickle.dumps(Touch(p.parent.parent / CANARY)))


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# The safetensors format, written by hand: length of the header, header, data.


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def write_header(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def _headers(path: Path, name: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Hostile headers of a file that has a tensor `name`."""

    def change(**entry: Any) -> Callable[[Path], None]:
        def do(p: Path) -> None:
            header, data = read_header(p)
            header[name] |= entry
            write_header(p, header, data)

        return do

    def length(value: int) -> Callable[[Path], None]:
        return lambda p: write_header(p, *read_header(p), length=value)

    def add(other: str, entry: Any) -> Callable[[Path], None]:
        def do(p: Path) -> None:
            header, data = read_header(p)
            write_header(p, header | {other: entry}, data)

        return do

    def swap(p: Path) -> None:
        header, data = read_header(p)
        size = header[name]["shape"]
        header[name]["shape"] = [size[0] * size[1]]
        write_header(p, header, data)

    def drop(p: Path) -> None:
        header, data = read_header(p)
        write_header(p, {k: v for k, v in header.items() if k != name}, data)

    for value in (2**63, 2**64 - 1, 2**32, 100_000_001, 0, 1):
        yield f"header-length-{value}", length(value)
    for size in ([10**12, 10**12], [2**62, 4], [0, 0], [-1, 32], ["a"], None, 3, [], [1] * 99999):
        yield f"shape-{str(size)[:24]}", change(shape=size)
    for offsets in ([0, 2**63], [2**62, 2**62 + 4], [-4, 4], [8, 0], [0, 0], [0], "x", None):
        yield f"offsets-{offsets}", change(data_offsets=offsets)
    yield "overlap", add("wpe.copy", {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})
    yield "hole", lambda p: write_header(p, read_header(p)[0], b"\0" * 64 + read_header(p)[1])
    yield "flat", swap
    yield "tensor-missing", drop
    for kind in ("F64", "I32", "BOOL", "X9", None):
        yield f"dtype-{kind}", change(dtype=kind)
    yield "header-list", lambda p: write_header(p, [], read_header(p)[1])
    yield "header-deep", lambda p: write_header(p, b"[" * 100_000, b"")
    yield "header-not-utf8", lambda p: write_header(p, b'{"\xff": 1}', b"")
    yield "metadata", add("__metadata__", {"format": {"a": 1}})


# Checkpoints.


def seal(folder: Path) -> None:
    """Give a checkpoint hashes that are right again, as whoever made it up would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    text = json.dumps(body, indent=1, sort_keys=True).encode()
    sealed = body | {"sha256": sha256(text).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(sealed, indent=1, sort_keys=True))


def change_state(folder: Path, **fields: Any) -> None:
    state = json.loads((folder / STATE).read_text())
    for key, value in fields.items():
        if key in state["shape"]:
            state["shape"][key] = value
        else:
            state[key] = value
    (folder / STATE).write_text(json.dumps(state))
    seal(folder)


NUMBERS: tuple[Any, ...] = (10**9, 10**30, 0, -1, 1.5, "2", None, True, [], float("nan"))


def _checkpoints(good: Path) -> Iterator[Case]:
    def case(
        name: str,
        damage: Callable[[Path], object],
        command: str = "sample",
        codes: frozenset[int] = REFUSED,
    ) -> Case:
        def make(folder: Path) -> list[str]:
            copy = Path(shutil.copytree(good, folder / "ckpt"))
            damage(copy)
            if command == "convert":
                return ["convert", str(copy), str(folder / "out"), "--to", "outpace"]
            return sample(copy) if command == "sample" else [command, str(copy)]

        return Case(f"checkpoint-{command}-{name}", make, codes)

    def of_manifest(**fields: Any) -> Callable[[Path], None]:
        return lambda p: write_manifest(p, json.loads((p / MANIFEST).read_text()) | fields)

    for file in (MODEL, STATE, MANIFEST):
        for i, (name, damage) in enumerate(_damages(good / file, 9)):
            # A folder without state.json is no checkpoint: there is nothing there to verify.
            codes = frozenset({2, 4}) if file == STATE and name == "gone" else REFUSED
            command = ("sample", "verify", "convert")[i % 3]
            yield case(f"{file}-{name}", lambda p, f=file, d=damage: d(p / f), command, codes)
    for name, damage in _headers(good / MODEL, "wpe.weight"):
        yield case(f"sealed-{name}", lambda p, d=damage: (d(p / MODEL), seal(p)))
    for value in NUMBERS:
        for key in ("n_layer", "n_embd", "vocab_size"):
            yield case(f"{key}-{value}", lambda p, k=key, v=value: change_state(p, **{k: v}))
    for value in (None, [], 3, "gpt9", "../../x"):
        yield case(f"tokenizer-{value}", lambda p, v=value: change_state(p, tokenizer=v))
    for value in (None, [], {}, {"n_layer": 1}, {"evil": 1}):
        yield case(f"shape-{value}", lambda p, v=value: change_state(p, shape=v))
    for text in ("[]", "null", "3", '"x"', "{}", "[" * 100_000, ""):
        yield case(
            f"state-{text[:4]}", lambda p, t=text: ((p / STATE).write_text(t), seal(p)), "sample"
        )
    for value in (None, [], {}, 3, {"../../outside": {"bytes": 1, "sha256": "0"}}):
        yield case(f"files-{str(value)[:20]}", of_manifest(files=value), "verify")
    for value in (None, 99, -1, "1", [1], 10**30):
        yield case(f"format-{value}", of_manifest(format=value))
    for value in (None, "x", [], {}):
        yield case(f"step-{value}", of_manifest(step=value))
    yield case("extra", lambda p: (p / "more.py").write_text("x"), "verify")
    yield case("large-manifest", lambda p: (p / MANIFEST).write_text(" " * 2_000_000), "verify")
    yield case("deep-manifest", lambda p: (p / MANIFEST).write_text("[" * 100_000), "verify")


# Hugging Face folders.


def _folders(good: Path) -> Iterator[Case]:
    def case(name: str, damage: Callable[[Path], object], codes: frozenset[int] = REFUSED) -> Case:
        def make(folder: Path) -> list[str]:
            copy = Path(shutil.copytree(good, folder / "hf"))
            damage(copy)
            return sample(copy)

        return Case(f"huggingface-{name}", make, codes)

    def of_config(**fields: Any) -> Callable[[Path], object]:
        return lambda p: (p / CONFIG).write_text(
            json.dumps(json.loads((p / CONFIG).read_text()) | fields)
        )

    for name, damage in _damages(good / MODEL, 12):
        unseen = name.startswith("flip")
        yield case(
            f"weights-{name}", lambda p, d=damage: d(p / MODEL), LENIENT if unseen else REFUSED
        )
    for name, damage in _damages(good / CONFIG, 6):
        unseen = name.startswith("flip") or name == "cut-0.9999"
        yield case(
            f"config-{name}", lambda p, d=damage: d(p / CONFIG), LENIENT if unseen else REFUSED
        )
    for name, damage in _headers(good / MODEL, "transformer.wpe.weight"):
        codes = LENIENT if name == "metadata" else REFUSED
        yield case(f"weights-{name}", lambda p, d=damage: d(p / MODEL), codes)
    for value in NUMBERS:
        for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            if not (key == "n_layer" and value is True):  # 1 == True, and JSON says true
                yield case(f"{key}-{value}", of_config(**{key: value}))
    yield case("n_head-3", of_config(n_head=3))
    yield case("deep-config", lambda p: (p / CONFIG).write_text("[" * 100_000))
    yield case("large-config", lambda p: (p / CONFIG).write_text(" " * 2_000_000 + "{}"))
    for kind, value in (("nan", float("nan")), ("inf", float("inf"))):
        yield case(f"weights-{kind}", lambda p, v=value: _poison(p / MODEL, v))


def _poison(path: Path, value: float) -> None:
    header, data = read_header(path)
    write_header(path, header, struct.pack("<f", value) + data[4:])


# nanoGPT's pickles.


def _pickles(good: Path) -> Iterator[Case]:
    def case(name: str, damage: Callable[[Path], object], codes: frozenset[int] = REFUSED) -> Case:
        def make(folder: Path) -> list[str]:
            (folder / "nano").mkdir()
            copy = Path(shutil.copy(good, folder / "nano" / "ckpt.pt"))
            damage(copy)
            return sample(copy)

        return Case(f"nanogpt-{name}", make, codes)

    def saved(change: Callable[[dict[str, Any], Path], object]) -> Callable[[Path], None]:
        """Saved by torch, with something in it changed first."""

        def do(p: Path) -> None:
            content = torch.load(p, weights_only=True)
            change(content, p)
            torch.save(content, p)

        return do

    def replaced(name: str, value: Callable[[Path], Any]) -> Callable[[Path], None]:
        return saved(lambda content, p: content["model"].update({name: value(p)}))

    def argument(key: str, value: Any) -> Callable[[Path], None]:
        return saved(lambda content, p: content["model_args"].update({key: value}))

    wpe = "_orig_mod.transformer.wpe.weight"
    for name, damage in _damages(good, 15):
        # A zip has bytes that mean nothing: dates, padding.
        codes = frozenset({0, 4}) if name.startswith(("flip", "longer")) else REFUSED
        codes = frozenset({2}) if name in ("gone", "folder") else codes
        codes = frozenset({2, 4}) if name == "folder" else codes
        yield case(name, damage, codes)
    for value in NUMBERS:
        for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if not (key == "n_layer" and value is True):
                yield case(f"{key}-{value}", argument(key, value))
    yield case("no-bias", argument("bias", False))
    for key in ("model", "model_args", "iter_num"):
        yield case(f"without-{key}", saved(lambda c, p, k=key: c.pop(k)))
        yield case(f"{key}-is-text", saved(lambda c, p, k=key: c.update({k: "x"})))
    yield case("code-in-weights", replaced(wpe, lambda p: Touch(p.parent.parent / CANARY)))
    yield case("code-beside", saved(lambda c, p: c.update(x=Touch(p.parent.parent / CANARY))))
    yield case("code-in-optimizer", saved(
        lambda c, p: c.update(optimizer={"state": Touch(p.parent.parent / CANARY)})
    ))  # fmt: skip
    yield case("stride-0", replaced(wpe, lambda p: torch.zeros(1).expand(10**6, 10**6)))
    yield case("stride-0-right", replaced(wpe, lambda p: torch.zeros(1).expand(64, 32)))
    yield case("sparse", replaced(wpe, lambda p: torch.zeros(64, 32).to_sparse()))
    yield case("meta", replaced(wpe, lambda p: torch.zeros(64, 32, device="meta")))
    yield case("integers", replaced(wpe, lambda p: torch.zeros(64, 32, dtype=torch.int64)))
    yield case("not-a-tensor", replaced(wpe, lambda p: "x"))
    yield case("nan", replaced(wpe, lambda p: torch.full((64, 32), float("nan"))))
    yield case("smaller", replaced(wpe, lambda p: torch.zeros(63, 32)))
    yield case("bytearray-bomb", lambda p: _pickle_of(p, _call("builtins", "bytearray", 10**12)))
    yield case("set-bomb", lambda p: _pickle_of(p, _call("builtins", "set", 1)))
    yield case("getattr", lambda p: _pickle_of(p, _call("builtins", "getattr", 1)))
    yield case("stack-global", lambda p: _pickle_of(p, _touches(p)))
    yield case(
        "bare-pickle", lambda p: p.write_bytes(pickle.dumps(Touch(p.parent.parent / CANARY)))
    )
    yield case("deflate-bomb", lambda p: _rezip(p, zipfile.ZIP_DEFLATED, bomb=True))
    yield case("deflated", lambda p: _rezip(p, zipfile.ZIP_DEFLATED))
    yield case("twice", lambda p: _rezip(p, zipfile.ZIP_STORED, twice=True))
    yield case("no-pickle", lambda p: _rezip(p, zipfile.ZIP_STORED, without="data.pkl"))
    yield case("no-storage", lambda p: _rezip(p, zipfile.ZIP_STORED, without="data/0"))
    yield case("declared-larger", _declare_larger)


def _touches(path: Path) -> bytes:
    return pickle.dumps(Touch(path.parent.parent / CANARY), protocol=4)


def _call(module: str, name: str, argument: int) -> bytes:
    """A pickle, protocol 2, that calls `module.name(argument)`."""
    number = pickle.dumps(argument, protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + number + b"\x85R."


def _pickle_of(path: Path, content: bytes) -> None:
    _rezip(path, zipfile.ZIP_STORED, swap={"data.pkl": content})


def _rezip(
    path: Path,
    kind: int,
    *,
    bomb: bool = False,
    twice: bool = False,
    without: str = "?",
    swap: dict[str, bytes] | None = None,
) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, data in members.items():
            short = name.partition("/")[2]
            if short == without:
                continue
            archive.writestr(name, (swap or {}).get(short, data))
            if twice and short == "data.pkl":
                archive.writestr(name, data)
        if bomb:
            with archive.open("archive/data/99", "w") as member:
                for _ in range(64):
                    member.write(b"\0" * (1 << 20))
    path.write_bytes(out.getvalue())


def _declare_larger(path: Path) -> None:
    """The directory of the zip says that a storage has 2 GB."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    data[entry + 20 : entry + 28] = struct.pack("<II", 2_000_000_000, 2_000_000_000)
    path.write_bytes(data)
