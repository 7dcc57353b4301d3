"""Overlaps planted in prepared shards: found wherever they stand, and nothing else."""

import random
import re

import pytest

from outpace.core.errors import DataError
from outpace.data import contamination as module
from outpace.data.contamination import contamination
from outpace.data.ngrams import NgramIndex

from .helpers import prepared, write_dataset

QUESTION = (
    "A man in a red jacket is standing at the top of a snowy slope. He adjusts his goggles and "
    "then he pushes off with both of his poles."
)
OTHER = " ".join(f"other{i}" for i in range(16))
WORDS = re.findall(r"\w+", QUESTION)
INDEX = NgramIndex([("activitynet 24", QUESTION), ("wikihow 92", OTHER), ("short", "A man.")])


def filler(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    vocabulary = ["snow", "the", "a", "top", "of", "naïve", "slope", "“quoted”", "日本", "he", "…"]
    return " ".join(rng.choices(vocabulary, k=n_words))


def found(dataset, **options):
    return contamination(dataset, "train", INDEX, **options)


def prepare(folder, texts, tokenizer, shard_tokens=100_000):
    return prepared(folder, texts, tokenizer=tokenizer, val_fraction=0.0, shard_tokens=shard_tokens)


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes"])
def test_planted_passages_are_found_in_their_documents_and_no_other(tmp_path, tokenizer):
    texts = [filler(i, 300) for i in range(40)]
    planted = {
        3: QUESTION,
        7: QUESTION.upper(),
        11: "\n\n".join(WORDS),
        20: QUESTION.replace(".", "!?").replace(" ", "  ").replace("goggles", "“goggles”,"),
        39: " ".join(WORDS[5:18]),
    }
    for number, text in planted.items():
        texts[number] = f"{filler(-number, 50)} {text} {texts[number]}"
    texts[30] = " ".join(WORDS[:12]) + " x " + " ".join(WORDS[12:24])  # 12 in a row at most
    dataset = prepare(tmp_path / "data", texts, tokenizer, shard_tokens=5000)
    assert len(dataset.shards) > 3
    record = found(dataset)
    assert list(record["contaminated"]) == ["activitynet 24"]
    hit = record["contaminated"]["activitynet 24"]
    assert (hit["documents"], hit["first"]) == (5, sorted(planted))
    assert hit["words"] in " ".join(WORDS).lower()
    assert len(hit["words"].split()) == 13
    assert record["documents"] == 40
    assert record["characters"] == sum(map(len, texts))
    assert record["too_short"] == ["short"]


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes"])
def test_an_overlap_is_found_across_every_border_of_the_blocks(tmp_path, tokenizer, monkeypatch):
    """With blocks so short that one cuts the passage in every place, and characters too."""
    text = (
        filler(1, 60) + " " + QUESTION.replace("snowy", "snowy,\n ‘ice-cold’ 日本") + filler(2, 60)
    )
    index = NgramIndex([("q", text[200:600])])
    dataset = prepare(tmp_path / "data", ["before", text, "after"], tokenizer)
    whole = index.find(text)
    assert len(whole) > 20
    for block in range(31, 97, 3):
        monkeypatch.setattr(module, "BLOCK_TOKENS", block)
        numbers, texts = [], []
        stream = dataset.stream("train")
        for some, parts in module._blocks(stream, module.get_tokenizer(tokenizer), 13, lambda n: 0):
            numbers += some
            texts += parts
        assert numbers == sorted(numbers) and set(numbers) == {0, 1, 2}
        hits = {n for found in index.find_in(texts) for n in found}
        assert hits == set(whole.tolist()), block


def test_an_overlap_is_found_across_a_border_behind_a_long_gap(tmp_path, monkeypatch):
    begins = f"{' '.join(WORDS[:6])} {'-' * 99_000} "
    text = begins + " ".join(WORDS[6:13]) + " and what follows"
    monkeypatch.setattr(module, "BLOCK_TOKENS", len(begins) + 3)
    assert found(prepare(tmp_path / "data", [text], "bytes"))["contaminated"]


def test_nothing_is_found_across_documents(tmp_path, monkeypatch):
    halves = [" ".join(WORDS[:12]), " ".join(WORDS[12:24])]
    dataset = prepare(tmp_path / "data", halves, "bytes")
    assert not found(dataset)["contaminated"]
    monkeypatch.setattr(module, "BLOCK_TOKENS", 40)
    assert not found(dataset)["contaminated"]


def test_clean_text_has_none_and_stock_phrases_are_left_out(tmp_path):
    texts = [f"{OTHER} {i}" for i in range(11)] + [filler(i, 500) for i in range(20)]
    dataset = prepare(tmp_path / "data", texts, "bytes")
    record = found(dataset)
    assert not record["contaminated"]
    assert record["common_ngrams"] == 4
    assert list(found(dataset, most_documents_per_gb=11)["contaminated"]) == ["wikihow 92"]
    assert list(found(dataset, most_documents_per_gb=None)["contaminated"]) == ["wikihow 92"]


def test_the_real_benchmark_is_not_in_the_novels(tmp_path, shared):
    """The whole of HellaSwag against a novel, and against itself."""
    from outpace.evals.contamination import passages
    from outpace.evals.tasks import hellaswag

    questions = hellaswag.load(shared / "hellaswag" / "hellaswag_val.jsonl")[::40]
    index = NgramIndex(passages([hellaswag.render(q, "completion") for q in questions]))
    novel = (shared / "novels" / "Burnett_Garden_1911.txt").read_text("utf-8-sig")[:200_000]
    texts = [novel, *(f"{q.ctx.upper()} {q.endings[q.label]}" for q in questions)]
    dataset = prepare(tmp_path / "data", texts, "gpt2")
    record = contamination(dataset, "train", index, most_documents_per_gb=None)
    assert len(record["contaminated"]) >= len(questions) - 4
    assert not any(0 in hit["first"] for hit in record["contaminated"].values())


def test_a_shard_that_begins_inside_a_document_and_an_empty_document(tmp_path):
    """As in shards that other programs cut."""
    end = 256
    tokens = [*QUESTION.encode(), end, end, *QUESTION.encode()]
    dataset_folder = write_dataset(tmp_path / "data", [tokens])
    from outpace.data.shards import open_dataset

    record = found(open_dataset(dataset_folder))
    assert record["contaminated"]["activitynet 24"]["first"] == [0, 2]
    assert record["documents"] == 3
    path = dataset_folder / "train_000000.bin"
    dataset = open_dataset(dataset_folder)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError):
        found(dataset)
