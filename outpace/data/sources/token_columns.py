"""Parquet columns of token ids instead of text (lists of integers), which skip the tokenizer. An
end-of-text anywhere in a row separates documents, and is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outpace.core.errors import DataError
from outpace.data.sources import Batch

END_OF_TEXT = 50256
"""GPT-2's id; such columns are read only for its vocabulary."""
LARGEST = np.iinfo(np.uint16).max


def holds_tokens(metadata: Any, field: str) -> bool:
    """Whether a parquet file's column contains lists of integers."""
    import pyarrow as pa

    kind = metadata.schema.to_arrow_schema().field(field).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_integer(kind.value_type))


def read_tokens(
    batches: Iterable[Any], path: Path, field: str, row: int, columns: Sequence[str]
) -> Iterator[Batch]:
    """Rows of a parquet file, from number `row` on, as documents of tokens. DataError for an id
    outside uint16; the vocabulary is checked later."""
    for rows in batches:
        lists = rows.column(field).fill_null([])
        flat = lists.flatten()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        nulls = np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[:1].tolist()
        ids = flat.fill_null(-1).to_numpy(zero_copy_only=False)
        if bad := nulls or np.flatnonzero((ids < 0) | (ids > LARGEST))[:1].tolist():
            at = row + 1 + int(np.searchsorted(np.cumsum(lengths), bad[0], "right"))
            what = "null" if nulls else f"{ids[bad[0]]}, beyond the vocabulary of GPT-2"
            raise DataError(
                "TOKEN-RANGE",
                f"{path}: row {at}: {field!r} contains {what}",
                do="the tokens are of another vocabulary; prepare the text itself",
            )
        row += len(lengths)
        values = {name: np.array(rows.column(name).to_pylist(), object) for name in columns}
        yield _documents(ids.astype(np.uint16), lengths, values)


def _documents(ids: Any, lengths: Any, values: dict[str, Any]) -> Batch:
    """Cut rows at every end-of-text; empty rows and parts are left out."""
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    is_end = ids == END_OF_TEXT
    part = np.cumsum(is_end) + row_of  # a number per part, ascending
    keep = ~is_end
    _, first, counts = np.unique(part[keep], return_index=True, return_counts=True)
    rows = row_of[keep][first]
    return Batch(
        columns={name: list(column[rows]) for name, column in values.items()},
        ids=ids[keep],
        lengths=counts.astype(np.int64),
    )
