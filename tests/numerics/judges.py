"""Models and scorers that the evaluation's results are held against."""

import json
from pathlib import Path

import torch

from outpace.bench.generation import random_model
from outpace.config.presets import GPT2Shape
from outpace.interop import huggingface
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group, Ranks
from outpace.tokenizer import get_tokenizer

CPU = torch.device("cpu")
ALONE = Group(Ranks(), CPU)
HOW = {"precision": "no", "group": ALONE}
SMALL_VOCABULARY = 256


class FoldedTokenizer:
    """GPT-2's tokenizer, its ids folded into a vocabulary that a small model goes through quickly.
    The judges fold theirs the same way."""

    name, vocab_size, end_of_text = "gpt2", SMALL_VOCABULARY, 50256 % SMALL_VOCABULARY

    def __init__(self) -> None:
        self.whole = get_tokenizer("gpt2")

    def encode(self, text: str) -> list[int]:
        return [i % SMALL_VOCABULARY for i in self.whole.encode(text)]


def wide_model(shape: GPT2Shape, factor: float = 6.0) -> GPT2:
    """Wide random weights, so that scores differ clearly."""
    model = random_model(shape, factor)
    with torch.no_grad():
        model.wte.weight[shape.vocab_size :] = 0
    return model


def transformers_model(model: GPT2):
    return huggingface.transformers_model(dict(model.state_dict()), model.shape)


def official_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


@torch.no_grad()
def plain_scores(theirs, encode, context: str, continuations: list[str]) -> list[float]:
    """Sums of log p by the book: a row a continuation, right-padded, transformers' logits, and
    log-softmax in double precision. Nothing shared, nothing packed."""
    before = encode(context)
    tails = [encode(text) for text in continuations]
    longest = max(map(len, tails))
    rows = torch.tensor([before + tail + [0] * (longest - len(tail)) for tail in tails])
    log_p = theirs(rows).logits[:, len(before) - 1 :].double().log_softmax(-1)
    return [
        float(log_p[i, : len(tail)].gather(-1, torch.tensor(tail)[:, None]).sum())
        for i, tail in enumerate(tails)
    ]


def best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
