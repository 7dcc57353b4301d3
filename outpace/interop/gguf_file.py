"""Writing GGUF, for llama.cpp and programs built on it: weights, shape and tokenizer in one file,
through llama.cpp's own `gguf` package, which knows its names of GPT-2's tensors. Metadata as in its
convert_hf_to_gguf.py.
"""

from pathlib import Path

import torch
from torch import Tensor

from outpace.config.presets import GPT2Shape
from outpace.interop.vocabulary import cropped
from outpace.tokenizer.gpt2 import END_OF_TEXT, merges, vocabulary

FILE_TYPES = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16"}


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
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, shape.n_layer)
    for ours, tensor in weights.items():
        tensor = cropped(tensor, shape) if ours == "wte.weight" else tensor
        kind = dtype if is_halved(ours, tensor) else torch.float32
        theirs = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(theirs, tensor.detach().cpu().to(kind).contiguous().numpy())
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
