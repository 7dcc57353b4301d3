"""Validation tokens are divided among the datasets that have any."""

from fractions import Fraction

import pytest

from outpace.data.mixture import Mixture
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.shards import Dataset, open_dataset
from outpace.data.sources.files import FilesSource
from outpace.evals.loss import Loss
from outpace.train.validate import validate


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Datasets of bytes; the last has no validation split."""
    folder = tmp_path_factory.mktemp("three")
    found = []
    for name, held_back in (("a", 0.5), ("b", 0.5), ("c", 0.0)):
        lines = [f'{{"text": "{name} document {i} of many"}}\n' for i in range(400)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        options = PrepareOptions(tokenizer="bytes", val_fraction=held_back)
        prepare(FilesSource([str(folder / f"{name}.jsonl")]), folder / name, options)
        found.append(open_dataset(folder / name))
    return found


def test_the_tokens_go_to_the_datasets_with_a_validation_split_by_their_shares(three):
    asked: dict[str, int] = {}

    def score(stream, tokens):
        asked[three[len(asked)].name] = tokens
        return Loss(loss=1.0 + len(asked), perplexity=1, bits_per_byte=1, tokens_scored=tokens)

    mixture = Mixture.of(three, [Fraction("0.3"), Fraction("0.1"), Fraction("0.6")])
    found = validate(score, mixture, 1000)
    assert asked == {"a": 750, "b": 250}
    assert found is not None and found.loss.tokens_scored == 1000
    assert found.loss.loss == pytest.approx(0.75 * 2 + 0.25 * 3)


def test_without_any_there_is_no_loss(three: list[Dataset]):
    assert validate(lambda *_: None, Mixture.of([three[2]], [Fraction(1)]), 1000) is None
