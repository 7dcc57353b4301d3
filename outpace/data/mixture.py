"""Datasets that a run reads together, each with its share of the samples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from outpace.core.errors import DataError
from outpace.core.files import sha256_json
from outpace.data.info import lengths_of
from outpace.data.shards import Dataset


@dataclass(frozen=True)
class Mixture:
    """One or more datasets with the same tokenizer."""

    datasets: Sequence[Dataset]
    weights: Sequence[Fraction]
    """As asked for; they need not add up to 1."""
    weighted: bool = False
    """Whether the weights were asked for, and so are part of a run's identity."""

    @classmethod
    def of(
        cls, datasets: Sequence[Dataset], weights: Sequence[Fraction] | None = None
    ) -> "Mixture":
        """Without weights, datasets weigh by their tokens, so that all are read to their ends at
        the same time. DataError if their tokenizers differ."""
        first = datasets[0]
        for other in datasets[1:]:
            if (
                other.manifest["tokenizer"]["vocab_sha256"]
                != (first.manifest["tokenizer"]["vocab_sha256"])
            ):
                raise DataError(
                    "TOKENIZERS-DIFFER",
                    f"{first.folder} was prepared with {first.tokenizer}, {other.folder} with "
                    f"{other.tokenizer}",
                    do="prepare one of them again, with the other's --tokenizer",
                )
        by_size = [Fraction(max(1, dataset.tokens("train"))) for dataset in datasets]
        return cls(datasets, weights or by_size, weights is not None)

    @property
    def shares(self) -> list[Fraction]:
        """Shares of the samples, adding up to 1."""
        return [weight / sum(self.weights, Fraction(0)) for weight in self.weights]

    @property
    def name(self) -> str:
        return "+".join(dataset.name for dataset in self.datasets)

    @property
    def tokenizer(self) -> str:
        return self.datasets[0].tokenizer

    @property
    def vocab_size(self) -> int:
        return self.datasets[0].vocab_size

    @property
    def where(self) -> str:
        """The folders, in the syntax of `--dataset`."""
        if not self.weighted:
            return ",".join(str(dataset.folder) for dataset in self.datasets)
        named = zip(self.datasets, self.weights, strict=True)
        return ",".join(f"{dataset.folder}:{float(weight):.12g}" for dataset, weight in named)

    @property
    def fingerprint(self) -> str:
        """Equal if the tokens, their order and the shares are."""
        prints = [dataset.fingerprint for dataset in self.datasets]
        if len(prints) == 1:
            return prints[0]
        return sha256_json([prints, [str(s) for s in self.shares] if self.weighted else "by size"])

    @property
    def unigram_entropy(self) -> float:
        """Nats per token: the loss of a model that knows only how common each token is in each
        dataset, weighted by the shares."""
        entropies = [dataset.unigram_entropy for dataset in self.datasets]
        return float(sum(float(s) * e for s, e in zip(self.shares, entropies, strict=True)))

    def tokens(self, split: str) -> int:
        return sum(dataset.tokens(split) for dataset in self.datasets)

    def tokens_to_first_end(self, each: Sequence[int] | None = None) -> int:
        """Training tokens until the first of the datasets is read to its end. `each` is how many an
        epoch of each has, if not all."""
        each = each or [dataset.tokens("train") for dataset in self.datasets]
        return min(int(n / share) for n, share in zip(each, self.shares, strict=True))

    def passes(self, tokens: int, each: Sequence[int] | None = None) -> list[float]:
        """How often each dataset is read in training on that many tokens."""
        each = each or [dataset.tokens("train") for dataset in self.datasets]
        return [
            float(share) * tokens / max(1, n) for n, share in zip(each, self.shares, strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """For plan.json."""
        found: dict[str, Any] = {
            "name": self.name,
            "path": self.where,
            "fingerprint": self.fingerprint,
            "train_tokens": self.tokens("train"),
            "val_tokens": self.tokens("val"),
            "documents": sum(shard.documents for d in self.datasets for shard in d.shards),
            "unigram_entropy": self.unigram_entropy,
            "tokenizer": self.tokenizer,
            "document_lengths": self._document_lengths(),
        }
        if len(self.datasets) > 1:
            for number, (dataset, share) in enumerate(zip(self.datasets, self.shares, strict=True)):
                found[f"dataset {number + 1}"] = (
                    f"{float(share):.4%} {dataset.name} ({dataset.folder}), fingerprint "
                    f"{dataset.fingerprint}"
                )
        return found

    def _document_lengths(self) -> list[tuple[int, int, int]]:
        """(from, below, documents) of the training splits, between powers of two."""
        documents: Counter[tuple[int, int]] = Counter()
        for lengths in (lengths_of(dataset, "train") for dataset in self.datasets):
            for first, below, count in lengths.bins if lengths else ():
                documents[first, below] += count
        return [(*between, count) for between, count in sorted(documents.items())]
