"""Hugging Face folders, both ways, against transformers itself."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from outpace.checkpoint.state import load_weights
from outpace.cli.main import main
from outpace.config.presets import GPT2Shape
from outpace.core.errors import CheckpointError, UsageError
from outpace.interop.huggingface import transformers_model
from outpace.interop.nanogpt import read_checkpoint
from outpace.model.gpt2 import GPT2
from outpace.train.load_model import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that transformers made and saved."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hf") / "gpt2"
    config = GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=48, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def logits(model, idx: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(idx)
    return out.logits if hasattr(out, "logits") else out[..., :50257]


def test_there_and_back_keeps_every_weight_and_logit(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(folder), "ours", "--to", "outpace"]) == 0
    assert main(["convert", "ours", "theirs", "--to", "huggingface"]) == 0
    assert "logits agree" in capsys.readouterr().out
    original = GPT2LMHeadModel.from_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    for (name, a), b in zip(original.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    idx = torch.randint(0, 50257, (2, 48))
    assert (logits(original, idx) - logits(load_model("ours", CPU).model, idx)).abs().max() < 1e-4


def test_a_changed_model_is_refused_with_what_differs():
    shape = GPT2Shape(1, 2, 16, 32, 257)
    weights = dict(GPT2(shape).state_dict())
    weights["lm_head.weight"] = weights["wte.weight"]
    weights["h.0.attn.c_attn.bias"] = torch.zeros(24)
    with pytest.raises(
        CheckpointError, match=r"unexpected .*lm_head.weight; .*is .24,., not .48,."
    ):
        transformers_model(weights, shape)


def test_an_exported_folder_has_a_working_tokenizer(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(folder), "out"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Hello, world!  It's 1919 — naïve café 🙂\n"
    from outpace.tokenizer import get_tokenizer

    assert tokenizer(text)["input_ids"] == get_tokenizer("gpt2").encode(text)
    assert tokenizer.eos_token_id == 50256


def test_old_folders_with_buffers_and_without_the_prefix_are_read(folder, tmp_path):
    """As the hub's `gpt2`: no `transformer.`, `attn.bias` buffers, no lm_head."""
    theirs = load_file(folder / "model.safetensors")
    bare = {k.removeprefix("transformer."): v for k, v in theirs.items() if "lm_head" not in k}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 48, 48) for i in range(2)}
    tmp_path.joinpath("config.json").write_text((folder / "config.json").read_text())
    save_file(bare, tmp_path / "model.safetensors")
    a, b = load_model(str(folder), CPU).model, load_model(str(tmp_path), CPU).model
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_by_inverse_layer_idx", True),
        ("tie_word_embeddings", False),
        ("n_inner", 100),
        ("n_embd", "many"),
    ],
)
def test_what_is_not_plain_gpt2_is_refused(folder, tmp_path, key, value):
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError) as caught:
        load_model(str(tmp_path), CPU)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("rows", "says"), [(50257, 50257), (50304, 50304), (50432, 50432)])
def test_nanogpt_vocabularies_are_padded_or_not(rows, says, tmp_path):
    """A model begun from GPT-2 has 50,257 rows, others what nanoGPT or its user padded them to."""
    path = nanogpt_file(tmp_path, rows, says)
    loaded = load_model(str(path), CPU)
    theirs = torch.load(path)["model"]["transformer.wte.weight"]
    assert torch.equal(loaded.model.wte.weight[:50257], theirs[:50257])
    assert not loaded.model.wte.weight[50257:].any()


def test_nanogpt_checkpoints_that_are_something_else_say_what(tmp_path):
    with pytest.raises((CheckpointError, UsageError), match="VOCABULARY"):
        load_model(str(nanogpt_file(tmp_path, 65, 65)), CPU)
    with pytest.raises(CheckpointError, match="a vocabulary of 50304, but has 50257"):
        load_model(str(nanogpt_file(tmp_path, 50257, 50304)), CPU)
    with pytest.raises(CheckpointError, match="head is tied to its embedding"):
        load_model(str(nanogpt_file(tmp_path, 50257, 50257, tied=False)), CPU)


def nanogpt_file(folder, rows, says, tied=True):
    with torch.device("meta"):
        sizes = {k: v.shape for k, v in GPT2(GPT2Shape(1, 2, 32, 16, 50257)).state_dict().items()}
    sizes["wte.weight"] = (rows, 32)
    theirs = {f"transformer.{k}": torch.randn(size) for k, size in sizes.items()}
    wte = theirs["transformer.wte.weight"]
    arguments = {
        "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": True,
        "vocab_size": says, "dropout": 0.0,
    }  # fmt: skip
    theirs["lm_head.weight"] = wte if tied else wte + 1
    path = folder / "ckpt.pt"
    torch.save({"model": theirs, "model_args": arguments, "iter_num": 9}, path)
    return path


def test_a_folder_that_is_more_than_a_gpt2_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    changes = {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="quantization_config"):
        load_model(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text(json.dumps(config))
    wte = weights["transformer.wte.weight"]
    for head, fine in ((wte.clone(), True), (wte + 1, False)):
        save_file(weights | {"lm_head.weight": head}, tmp_path / "model.safetensors")
        if fine:
            load_model(str(tmp_path), CPU)
        else:
            with pytest.raises(CheckpointError, match="head is tied to its embedding"):
                load_model(str(tmp_path), CPU)


def test_damaged_weights_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError):
        load_model(str(tmp_path), CPU)


def test_nanogpt_checkpoints_are_read_and_pickles_that_run_code_are_not(tmp_path):
    shape = GPT2Shape(1, 2, 32, 16, 50257)
    model = GPT2(shape)
    theirs = {f"_orig_mod.transformer.{k}": v for k, v in model.state_dict().items()}
    theirs["_orig_mod.lm_head.weight"] = theirs["_orig_mod.transformer.wte.weight"]
    arguments = {
        "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": True,
        "vocab_size": 50304, "dropout": 0.0,
    }  # fmt: skip
    torch.save({"model": theirs, "model_args": arguments, "iter_num": 9}, tmp_path / "ckpt.pt")
    got, weights, iterations = read_checkpoint(tmp_path / "ckpt.pt")
    load_weights(GPT2(got), weights)
    assert got == shape and iterations == 9
    in_its_folder = load_model(str(tmp_path), torch.device("cpu"))
    assert in_its_folder.step == 9 and torch.equal(in_its_folder.model.wpe.weight, model.wpe.weight)

    bare = {k: v for k, v in theirs.items() if not k.endswith(".bias")}
    no_bias = {"model": bare, "model_args": arguments | {"bias": False}, "iter_num": 9}
    torch.save(no_bias, tmp_path / "bare.pt")
    _, found, _ = read_checkpoint(tmp_path / "bare.pt")
    assert found.keys() == weights.keys()
    assert all(not w.any() for k, w in found.items() if k.endswith(".bias"))

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "canary",))

    torch.save({"model": Evil()}, tmp_path / "evil.pt", pickle_module=pickle)
    data = bytearray((tmp_path / "ckpt.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    for name in ("evil.pt", "flipped.pt", "missing.pt"):
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "canary").exists()
