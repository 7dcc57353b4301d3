"""How `golden/openai` was made: a GPT-2 of one layer with OpenAI's variable names (openai/gpt-2,
src/model.py), saved by TensorFlow itself (2.21) through the Saver that OpenAI used.

    pip install tensorflow-cpu; python make_openai_checkpoint.py golden/openai
"""

import json
import sys
from pathlib import Path

import numpy as np

HPARAMS = {"n_vocab": 257, "n_ctx": 16, "n_embd": 16, "n_head": 2, "n_layer": 1}


def variables() -> dict[str, np.ndarray]:
    """Name and fp32 value of each variable."""
    draw = np.random.default_rng(0)
    C = HPARAMS["n_embd"]
    sizes: dict[str, tuple[int, ...]] = {
        "wpe": (HPARAMS["n_ctx"], C),
        "wte": (HPARAMS["n_vocab"], C),
    }
    for layer in range(HPARAMS["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            sizes |= {f"h{layer}/{norm}/{kind}": (C,) for kind in "gb"}
        for linear, n_in, n_out in (
            ("attn/c_attn", C, 3 * C), ("attn/c_proj", C, C),
            ("mlp/c_fc", C, 4 * C), ("mlp/c_proj", 4 * C, C),
        ):  # fmt: skip
            sizes |= {f"h{layer}/{linear}/w": (1, n_in, n_out), f"h{layer}/{linear}/b": (n_out,)}
    sizes |= {f"ln_f/{kind}": (C,) for kind in "gb"}
    return {f"model/{k}": draw.normal(0, 0.3, s).astype("float32") for k, s in sizes.items()}


def main(folder: Path) -> None:
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    folder.mkdir(parents=True)
    for name, value in variables().items():
        tf.get_variable(name, initializer=value)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
