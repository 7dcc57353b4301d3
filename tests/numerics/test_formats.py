"""OpenAI's TensorFlow checkpoints, llm.c's files, GGUF, large folders: against the programs that
own the format where they can run, else against a writer or reader that shares nothing with ours.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import google_crc32c
import make_openai_checkpoint
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from outpace.cli.main import main
from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError
from outpace.interop import declared, huggingface, llmc, openai
from outpace.interop.tensor_bundle import Bundle
from outpace.model.gpt2 import GPT2
from outpace.train.load_model import load_model

CPU = torch.device("cpu")
OPENAI = Path(__file__).parent / "golden" / "openai"
SHAPE = GPT2Shape(2, 2, 16, 32, 50257)
LLMC = os.environ.get("OUTPACE_TEST_LLMC", "")
"""A checkout of karpathy/llm.c."""
NANOGPT = os.environ.get("OUTPACE_TEST_NANOGPT", "")
needs_nanogpt = pytest.mark.skipif(
    not NANOGPT, reason="OUTPACE_TEST_NANOGPT names no checkout of nanoGPT"
)
needs_llmc = pytest.mark.skipif(not LLMC, reason="OUTPACE_TEST_LLMC names no checkout of llm.c")


@pytest.fixture(scope="module")
def model() -> GPT2:
    """A model in which every parameter matters."""
    model = GPT2(SHAPE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3, generator=generator)
            if name == "wte.weight":
                p[SHAPE.vocab_size :] = 0
    return model.eval()


@pytest.fixture(scope="module")
def folder(model: GPT2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as transformers saves it."""
    path = tmp_path_factory.mktemp("formats") / "hf"
    huggingface.transformers_model(dict(model.state_dict()), SHAPE).save_pretrained(path)
    return path


@torch.no_grad()
def furthest(ours: GPT2, theirs) -> float:
    """Largest difference of logits, theirs being a transformers model."""
    V = ours.shape.vocab_size
    idx = torch.randint(0, V, (2, ours.shape.context), generator=torch.Generator().manual_seed(1))
    return float((ours(idx)[..., :V] - theirs.eval()(idx).logits).abs().max())


def refused(path: Path, words: str = "") -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(str(path), CPU)
    assert words in caught.value.what
    return caught.value.what


# OpenAI's folder, written by TensorFlow.


def openai_in_transformers() -> GPT2LMHeadModel:
    """The golden variables in transformers' GPT-2, whose Conv1D stores what OpenAI does."""
    h = make_openai_checkpoint.HPARAMS
    config = GPT2Config(
        n_layer=h["n_layer"], n_head=h["n_head"], n_embd=h["n_embd"], n_positions=h["n_ctx"],
        vocab_size=h["n_vocab"], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    spelt = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    state = {}
    for name, value in make_openai_checkpoint.variables().items():
        parts = name.removeprefix("model/").split("/")
        key = ".".join((*parts[:-1], spelt[parts[-1]]))
        key = re.sub(r"^h(\d+)\.", r"h.\1.", key)
        state[f"transformer.{key}"] = torch.from_numpy(
            value.squeeze(0) if value.ndim == 3 else value
        )
    model = GPT2LMHeadModel(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


def test_a_checkpoint_of_tensorflow_is_read_without_it(tmp_path):
    assert "tensorflow" not in sys.modules
    bundle = Bundle(OPENAI / "model.ckpt")
    values = make_openai_checkpoint.variables()
    assert bundle.entries.keys() == values.keys()
    for name, value in values.items():
        assert np.array_equal(bundle.read(name).numpy(), value), name
    loaded = load_model(str(OPENAI), CPU)
    assert loaded.tokenizer == "bytes"
    assert furthest(loaded.model, openai_in_transformers()) < 1e-5
    assert main(["convert", str(OPENAI), str(tmp_path / "ours"), "--to", "outpace"]) == 0
    assert furthest(load_model(str(tmp_path / "ours"), CPU).model, openai_in_transformers()) < 1e-5


def copy_of_openai(tmp_path: Path) -> tuple[Path, Path, Path]:
    path = Path(shutil.copytree(OPENAI, tmp_path / "openai"))
    return path, path / "model.ckpt.index", path / "model.ckpt.data-00000-of-00001"


def test_no_bit_of_a_tensorflow_checkpoint_can_flip_unseen(tmp_path):
    """Each byte of the index, and some of the data: refused, or it was a byte that says nothing."""
    path, index, data = copy_of_openai(tmp_path)
    sound = openai.read_folder(path)[1]
    whole, quiet = index.read_bytes(), 0
    for at in range(len(whole)):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            again = openai.read_folder(path)[1]
        except CheckpointError:
            continue
        quiet += 1
        assert all(torch.equal(again[name], w) for name, w in sound.items()), at
    assert quiet <= 48 + 13  # padding of the footer, and the empty block of filters
    index.write_bytes(whole)
    numbers = data.read_bytes()
    for at in range(0, len(numbers), 1999):
        data.write_bytes(numbers[:at] + bytes([numbers[at] ^ 1]) + numbers[at + 1 :])
        refused(path, "checksum")
    data.write_bytes(numbers[:-1])
    refused(path, "outside the data file")


def varint(value: int) -> bytes:
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_index(path: Path, rows: dict[bytes, bytes]) -> None:
    """A LevelDB table of one block, with right checksums whatever the rows say."""

    def block(entries: dict[bytes, bytes]) -> bytes:
        body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in entries.items())
        body += struct.pack("<II", 0, 1) + b"\0"
        crc = google_crc32c.value(body)
        return body + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    data, empty = block(rows), block({})
    handles = [varint(0) + varint(len(data) - 5), varint(len(data)) + varint(len(empty) - 5)]
    index = block({b"z": handles[0]})
    at = len(data) + len(empty)
    footer = (handles[1] + varint(at) + varint(len(index) - 5)).ljust(40, b"\0")
    path.write_bytes(data + empty + index + footer + bytes.fromhex("57fb808b247547db"))


def entry(size: tuple[int, ...], n_bytes: int, offset: int = 0, kind: int = 1) -> bytes:
    shape = b"".join(field(2, field(1, n)) for n in size)
    return field(1, kind) + field(2, shape) + field(4, offset) + field(5, n_bytes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (entry((2**40, 2**22), 4), "wpe.weight"),
        (entry((16, 16), 2**62), "outside"),
        (entry((16, 16), 1024, 2**63), "outside"),
        (entry((16, 16), 1024, kind=19), ""),
        (entry((16, 16), 1024) + field(7, b"x"), "slices"),
        (entry((16, 16), 1024)[:-2], ""),
        (field(2, b"\x12\x7f"), "cut"),
        (b"\xff" * 12, "64 bits"),
    ],
    ids=str,
)
def test_what_an_index_declares_is_not_believed(row, words, tmp_path):
    path, index, _ = copy_of_openai(tmp_path)
    rows = {b"": field(1, 1)}
    for name, value in sorted(make_openai_checkpoint.variables().items()):
        rows[name.encode()] = entry(value.shape, value.nbytes)
    write_index(index, rows)
    assert Bundle(path / "model.ckpt").entries.keys() == make_openai_checkpoint.variables().keys()
    write_index(index, rows | {b"model/wpe": row})
    refused(path, words)


def test_the_newest_of_several_checkpoints_is_the_one_that_is_named(tmp_path):
    path, index, data = copy_of_openai(tmp_path)
    shutil.copy(index, path / "model-9.index")
    shutil.copy(data, path / "model-9.data-00000-of-00001")
    data.unlink()
    (path / "checkpoint").write_text('model_checkpoint_path: "model-9"\n')
    assert load_model(str(path), CPU).model.shape.n_layer == 1
    (path / "checkpoint").unlink()
    refused(path, "2 checkpoints")


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_layer", 2), ("n_layer", 10**9), ("n_embd", 32), ("n_vocab", 256), ("n_head", 0)],
)
def test_hyperparameters_that_are_not_the_models_are_refused(key, value, tmp_path):
    path, *_ = copy_of_openai(tmp_path)
    (path / "hparams.json").write_text(json.dumps(make_openai_checkpoint.HPARAMS | {key: value}))
    refused(path)


# llm.c.


def written_apart(model: GPT2, *, padded: int, version: int = 3) -> bytes:
    """llm.c's format by the description in its train_gpt2.py, not by our table."""
    w = {k: v.detach() for k, v in model.state_dict().items()}
    T, V, L, H, C = 32, 50257, 2, 2, 16
    parts = [np.zeros(256, np.int32)]
    parts[0][:8] = 20240326, version, T, V, L, H, C, padded
    kinds = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"]
    kinds += ["attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"]
    kinds += ["mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
    tensors = [torch.cat((w["wte.weight"][:V], torch.full((padded - V, C), 7.0))), w["wpe.weight"]]
    tensors += [torch.stack([w[f"h.{i}.{kind}"] for i in range(L)]) for kind in kinds]
    tensors += [w["ln_f.weight"], w["ln_f.bias"]]
    if version == 3:
        parts += [t.numpy() for t in tensors]
    else:  # bf16 is the upper half of fp32, rounded to even
        bits = [t.numpy().view(np.uint32).astype(np.uint64) for t in tensors]
        parts += [((b + 0x7FFF + (b >> 16 & 1)) >> 16).astype(np.uint16) for b in bits]
    return b"".join(p.tobytes() for p in parts)


@pytest.mark.parametrize(("version", "padded"), [(3, 50304), (5, 50304), (3, 50257), (3, 51200)])
def test_files_of_llmc_are_read_whatever_their_padding(version, padded, model, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(written_apart(model, padded=padded, version=version))
    read = load_model(str(path), CPU).model
    for name, w in model.state_dict().items():
        expected = w if version == 3 else w.bfloat16().float()
        assert torch.equal(read.state_dict()[name], expected), name


def test_files_for_llmc_are_those_of_the_description(model, folder, tmp_path):
    for version, dtype in ((3, "float32"), (5, "bfloat16")):
        path = tmp_path / dtype
        assert main(["convert", str(folder), str(path), "--to", "llmc", "--dtype", dtype]) == 0
        expected = written_apart(model, padded=50304, version=version)
        item = 4 if version == 3 else 2  # their padding is ours, zero
        rows = slice(1024 + 50257 * 16 * item, 1024 + 50304 * 16 * item)
        zeros = b"\0" * (rows.stop - rows.start)
        assert path.read_bytes() == expected[: rows.start] + zeros + expected[rows.stop :]


def test_a_checkpoint_for_nanogpt_has_what_its_train_py_asks_for(model, folder, tmp_path):
    path = tmp_path / "out" / "ckpt.pt"
    assert main(["convert", str(folder), str(path)]) == 0
    saved = torch.load(path, weights_only=True)  # as it is loaded there
    weights, theirs = model.state_dict(), saved["model"]
    assert torch.equal(theirs["transformer.wte.weight"], weights["wte.weight"][:50257])
    assert torch.equal(theirs["lm_head.weight"], theirs["transformer.wte.weight"])
    assert theirs.keys() == {f"transformer.{name}" for name in weights} | {"lm_head.weight"}
    assert saved["model_args"]["vocab_size"] == 50257 and saved["iter_num"] == 0
    # As its configure_optimizers groups them.
    parameters = [p.requires_grad_() for name, p in theirs.items() if name != "lm_head.weight"]
    groups = [[p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    optimizer.load_state_dict(saved["optimizer"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    again = load_model(str(path), CPU).model.state_dict()
    assert all(torch.equal(again[name], w) for name, w in weights.items() if name != "wte.weight")


@needs_nanogpt
def test_nanogpts_own_model_agrees(model, folder, tmp_path):
    assert main(["convert", str(folder), str(tmp_path / "ckpt.pt")]) == 0
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(NANOGPT) / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    theirs = module.GPT(module.GPTConfig(**saved["model_args"]))
    theirs.load_state_dict(saved["model"])
    theirs.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu").load_state_dict(saved["optimizer"])
    for block in theirs.transformer.h:  # theirs is the exact one
        block.mlp.gelu = torch.nn.GELU(approximate="tanh")
    idx = torch.randint(50257, (2, SHAPE.context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, _ = theirs.eval()(idx, idx)
        difference = (logits - model(idx)[..., :50257]).abs().max()
    assert difference < 1e-5 * logits.abs().max()


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 20240327), (1, 1), (2, 0), (2, 2**31 - 1), (3, -1), (4, 10**9), (5, 3), (6, 2**20),
     (7, 50256), (7, 2**31 - 1)],
)  # fmt: skip
def test_headers_that_lie_are_refused_before_memory_is_taken(at, value, model, tmp_path):
    data = bytearray(written_apart(model, padded=50304))
    data[4 * at : 4 * at + 4] = struct.pack("<i", value)
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        llmc.read_model(path)


def test_a_file_of_llmc_that_is_cut_or_longer_is_refused(model, tmp_path):
    data, path = written_apart(model, padded=50304), tmp_path / "model.bin"
    for damaged in (data[:-4], data[:1000], data + b"\0" * 4):
        path.write_bytes(damaged)
        refused(path)


@needs_llmc
def test_llmcs_own_writer_and_its_c_program_agree(model, folder, tmp_path):
    """Its train_gpt2.py writes what we read; its train_gpt2.c computes from what we write."""
    spec = importlib.util.spec_from_file_location("llmc_train", Path(LLMC) / "train_gpt2.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    their_model = theirs.GPT(theirs.GPTConfig(32, 50257, 2, 2, 16))
    state = {f"transformer.{k}": v for k, v in model.state_dict().items()}
    state["transformer.wte.weight"] = state["transformer.wte.weight"][:50257]
    their_model.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]}, False)
    for dtype in ("float32", "bfloat16"):
        theirs.write_model(their_model, tmp_path / dtype, dtype)
        read = load_model(str(tmp_path / dtype), CPU).model.state_dict()
        for name, w in model.state_dict().items():
            assert torch.equal(read[name], w.to(getattr(torch, dtype)).float()), name
    assert main(["convert", str(folder), str(tmp_path / "model.bin"), "--to", "llmc"]) == 0
    (tmp_path / "run.c").write_text("""
        #define TESTING
        #include "train_gpt2.c"
        int main(int n, char **argv) {
            GPT2 model;
            gpt2_build_from_checkpoint(&model, argv[1]);
            int tokens[32];
            for (int i = 0; i < 32; i++) { tokens[i] = i * 1571 % 50257; }
            gpt2_forward(&model, tokens, NULL, 1, 32);
            FILE *out = fopen(argv[2], "wb");
            fwrite(model.acts.logits, sizeof(float), 32L * 50304, out);
            return fclose(out);
        }""")
    build = ["gcc", "-O2", "-I", LLMC, "-o", "run", "run.c", "-lm"]
    subprocess.run(build, cwd=tmp_path, check=True)
    subprocess.run(["./run", "model.bin", "logits"], cwd=tmp_path, check=True)
    got = torch.from_numpy(np.fromfile(tmp_path / "logits", np.float32).reshape(32, 50304))
    with torch.no_grad():
        expected = model(torch.arange(32)[None] * 1571 % 50257)[0]
    assert (got - expected)[:, :50257].abs().max() < 1e-3


# GGUF.


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.exhaustive), "float16"]
)
def test_gguf_is_what_its_own_reader_and_transformers_take_for_gpt2(dtype, model, folder, tmp_path):
    path = tmp_path / "model.gguf"
    assert main(["convert", str(folder), str(path), "--to", "gguf", "--dtype", dtype]) == 0
    reader = gguf.GGUFReader(path)

    def value(key: str):
        return reader.fields[key].contents()

    assert value("general.architecture") == "gpt2"
    for key, expected in {
        "block_count": 2, "context_length": 32, "embedding_length": 16, "feed_forward_length": 64,
        "attention.head_count": 2,
    }.items():  # fmt: skip
        assert value(f"gpt2.{key}") == expected
    assert value("gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-5)
    assert value("tokenizer.ggml.model") == "gpt2"
    assert value("tokenizer.ggml.pre") == "gpt-2"
    assert value("tokenizer.ggml.eos_token_id") == 50256
    tokens, merges = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.merges")
    assert (len(tokens), tokens[262], tokens[50256]) == (50257, "Ġthe", "<|endoftext|>")
    assert (len(merges), merges[0]) == (50000, "Ġ t")
    state = model.state_dict()
    named = {
        "token_embd.weight": state["wte.weight"][:50257],
        "position_embd.weight": state["wpe.weight"],
        "output_norm.bias": state["ln_f.bias"],
        "blk.1.attn_norm.weight": state["h.1.ln_1.weight"],
        "blk.0.attn_qkv.weight": state["h.0.attn.c_attn.weight"],
        "blk.1.attn_output.bias": state["h.1.attn.c_proj.bias"],
        "blk.0.ffn_norm.bias": state["h.0.ln_2.bias"],
        "blk.1.ffn_up.weight": state["h.1.mlp.c_fc.weight"],
        "blk.1.ffn_down.weight": state["h.1.mlp.c_proj.weight"],
    }  # fmt: skip
    found = {t.name: t for t in reader.tensors}
    assert len(found) == 4 + 12 * 2
    for name, w in named.items():
        halved = dtype == "float16" and w.dim() == 2 and name != "position_embd.weight"
        expected = w.half() if halved else w
        assert np.array_equal(found[name].data, expected.numpy()), name


def test_a_weight_that_half_precision_cannot_hold_is_refused(model, tmp_path):
    big = GPT2(SHAPE)
    big.load_state_dict(model.state_dict())
    with torch.no_grad():
        big.h[1].mlp.c_fc.weight[3, 3] = 70_000.0
    huggingface.transformers_model(dict(big.state_dict()), SHAPE).save_pretrained(tmp_path / "big")
    for to in ("gguf", "huggingface"):
        argv = ["convert", str(tmp_path / "big"), str(tmp_path / "o.gguf"), "--to", to]
        assert main([*argv, "--dtype", "float16"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["big"]


# What convert refuses, and how large folders are read.


@pytest.mark.parametrize("to", ["gguf", "huggingface", "llmc"])
def test_a_bug_in_a_format_is_caught_by_the_check(to, folder, tmp_path, monkeypatch, capsys):
    """Two matrices of the same size change places, as a wrong table would have it."""

    def swapped(name: str) -> str:
        if not name.endswith(("attn.c_proj.weight", "attn_output.weight")):
            return name
        return name.translate({ord("0"): "1", ord("1"): "0"})  # the number of the layer

    if to == "gguf":
        add = gguf.GGUFWriter.add_tensor
        monkeypatch.setattr(
            gguf.GGUFWriter, "add_tensor", lambda self, name, data: add(self, swapped(name), data)
        )
    elif to == "huggingface":
        rename = huggingface.to_huggingface
        monkeypatch.setattr(
            huggingface,
            "to_huggingface",
            lambda *of: {swapped(name): tensor for name, tensor in rename(*of).items()},
        )
    else:
        sizes, read = llmc._sizes, llmc.read_model
        monkeypatch.setattr(
            llmc, "_sizes", lambda *of: ((swapped(name), size) for name, size in sizes(*of))
        )

        def reading(path):  # its only reader is ours, which would lie too
            with pytest.MonkeyPatch.context() as honestly:
                honestly.setattr(llmc, "_sizes", sizes)
                return read(path)

        monkeypatch.setattr(llmc, "read_model", reading)
    assert main(["convert", str(folder), str(tmp_path / "out.gguf"), "--to", to]) == 4
    assert "logits differ" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_variant_of_ours_is_refused_with_the_reason():
    @dataclasses.dataclass(frozen=True)
    class Variant(GPT2Shape):
        norm: str = "layer"

    plain = dataclasses.asdict(SHAPE)
    assert declared.why_not_plain(SHAPE) is None
    assert declared.why_not_plain(Variant(**plain)) is None
    why = declared.why_not_plain(Variant(**plain, norm="rms"))
    assert why == "norm is 'rms', and GPT-2 has 'layer'"


@pytest.mark.parametrize(
    ("to", "dtype"),
    [("outpace", "float16"), ("gguf", "bfloat16"), ("llmc", "float16"), ("nanogpt", "bfloat16")],
)
def test_a_precision_that_the_format_has_not_is_refused(to, dtype, folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "o"), "--to", to, "--dtype", dtype]) == 2
    assert f"{to} is not written in torch.{dtype}" in capsys.readouterr().err


def test_a_folder_in_several_files_is_read_as_one(model, tmp_path):
    theirs = huggingface.transformers_model(dict(model.state_dict()), SHAPE)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="1MB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    read = load_model(str(tmp_path / "hf"), CPU).model
    assert all(torch.equal(w, read.state_dict()[k]) for k, w in model.state_dict().items())
    index = tmp_path / "hf" / "model.safetensors.index.json"
    for bad in ('{"weight_map": {"a": "../x.safetensors"}}', "[]", "{", '{"weight_map": {"a": 3}}'):
        index.write_text(bad)
        refused(tmp_path / "hf", "model.safetensors.index.json")


def test_a_folder_with_a_pickle_alone_is_refused_with_the_reason(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    refused(tmp_path, "pytorch_model.bin is a pickle")


def test_a_half_precision_folder_is_that_model_rounded(model, folder, tmp_path):
    out = tmp_path / "half"
    assert main(["convert", str(folder), str(out), "--dtype", "bfloat16"]) == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    read = load_model(str(out), CPU).model.state_dict()
    assert all(torch.equal(w.bfloat16().float(), read[k]) for k, w in model.state_dict().items())


def test_lm_eval_loads_an_exported_folder_with_nothing_else(model, folder, tmp_path):
    """Its log-likelihood of a continuation is ours."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from outpace.tokenizer import get_tokenizer

    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    lm = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=1)
    context, ending = "The cat sat", " on the mat — today"
    request = Instance("loglikelihood", {}, (context, ending), 0)
    ((theirs, _),) = lm.loglikelihood([request], disable_tqdm=True)
    tokenizer = get_tokenizer("gpt2")
    first, second = tokenizer.encode(context), tokenizer.encode(ending)
    with torch.no_grad():
        log_p = model(torch.tensor([first + second]))[0].log_softmax(-1)
    at = torch.arange(len(first) - 1, len(first) + len(second) - 1)
    ours = log_p[at, torch.tensor(second)].sum()
    assert theirs == pytest.approx(float(ours), abs=1e-3)


@pytest.mark.parametrize("package", ["google_crc32c", "gguf", "transformers"])
def test_a_missing_library_is_named(package, monkeypatch, folder, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    source = OPENAI if package == "google_crc32c" else folder
    assert main(["convert", str(source), str(tmp_path / "o.gguf"), "--to", "gguf"]) == 2
    said = capsys.readouterr().err
    assert f"has no package {package}; do: pip install 'outpace[interop]'" in said
    assert not list(tmp_path.glob("*o.gguf"))
