"""Writing GGUF, for llama.cpp and programs built on it: weights, shape and tokenizer in one file,
through llama.cpp's own `gguf` package. Names and metadata as in its convert_hf_to_gguf.py.
"""

from pathlib import Path

import torch
from torch import Tensor

from outpace.config.presets import GPT2Shape
from outpace.interop.vocabulary import cropped
from outpace.tokenizer.gpt2 import END_OF_TEXT, merges, vocabulary

TOP = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
FILE_TYPES = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16"}


def their_name(ours: str) -> str:
    """`h.3.attn.c_attn.bias` -> `blk.3.attn_qkv.bias`."""
    module, _, kind = ours.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{kind}"
    _, layer, part = module.split(".", 2)
    return f"blk.{layer}.{BLOCK[part]}.{kind}"


def is_halved(name: str, tensor: Tensor) -> bool:
    """Whether an fp16 file stores this tensor (outpace's name) in fp16: all matrices except the
    position embedding, as in llama.cpp."""
    return tensor.dim() == 2 and name != "wpe.weight"


def write_model(
    path: Path, weights: dict[str, Tensor], shape: GPT2Shape, dtype: torch.dtype, name: str
) -> None:
    """Write weights (outpace's names) as fp32 or fp16 GGUF. The head is wte, so it is not stored
    twice."""
    import gguf

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(name)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(4 * shape.n_embd)
    writer.add_head_count(shape.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    _add_tokenizer(writer, gguf.TokenType)
    for ours, tensor in weights.items():
        tensor = cropped(tensor, shape) if ours == "wte.weight" else tensor
        kind = dtype if is_halved(ours, tensor) else torch.float32
        writer.add_tensor(their_name(ours), tensor.detach().cpu().to(kind).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer, types) -> None:  # type: ignore[no-untyped-def]  # gguf has no types
    """Add GPT-2's tokens, merges and end-of-text."""
    ids = vocabulary()
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([types.CONTROL if t == END_OF_TEXT else types.NORMAL for t in tokens])
    writer.add_token_merges(merges())
    writer.add_bos_token_id(ids[END_OF_TEXT])
    writer.add_eos_token_id(ids[END_OF_TEXT])
    writer.add_add_bos_token(False)
