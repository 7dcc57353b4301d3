"""Made-up documents and what is prepared from them."""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from outpace.data.shards import Dataset

from .helpers import prepared

WORDS = ["the", "gull", "stood", "on", "a", "rail", "and", "looked", "at", "water", "owed"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """300 different documents of 1 to 60 words."""
    rng = random.Random(1)
    return [f"{n}: " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for n in range(300)]


@pytest.fixture(scope="session")
def dataset(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The documents as bytes, in many shards. Not to be written to."""
    folder = tmp_path_factory.mktemp("dataset") / "made"
    return prepared(folder, texts, val_fraction=0.1, shard_tokens=3000)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of this user's, who is not root, for whom no permission counts."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if user == 0:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            for path in folder.rglob("*"):
                path.chmod(0o700)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a dataset may be written."""
    return tmp_path / "dataset"
