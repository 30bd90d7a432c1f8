"""Columns of text of catalogues so large that lists of their entries would be larger still. Knows no items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import polars as pl

from recsys.data.grown import Entries
from recsys.data.sequences import IntArray

T = TypeVar("T")
_A_BLOCK = 1 << 16


class Column(Entries[T]):
    """What is read of the entries of a column, each when it is asked for.

    Args:
        values: the column.
        read: an entry, None where it is null.
    """

    def __init__(self, values: pl.Series, read: Callable[[str | None], T]) -> None:
        self._values = values
        self._read = read

    def __len__(self) -> int:
        return len(self._values)

    def at(self, place: int) -> T:
        """See `Entries`."""
        return self._read(self._values[place])

    def __iter__(self) -> Iterator[T]:
        for begin in range(0, len(self._values), _A_BLOCK):
            yield from map(self._read, self._values[begin : begin + _A_BLOCK].to_list())


class RowsByText:
    """Where the entries of a column stand, in sixteen bytes each: by their hashes, and what they point at is compared.

    A dictionary takes some hundred and fifty bytes for each, and a few microseconds to find ten; this takes a hundred.

    Args:
        values: String without nulls, each once.
    """

    def __init__(self, values: pl.Series) -> None:
        self._values = values
        hashes = values.hash().to_numpy()
        self._rows = np.argsort(hashes)
        self._hashes = hashes[self._rows]

    def find(self, texts: Sequence[str]) -> IntArray:
        """int64 [len(texts)]: the row of each text, -1 for one that is not there."""
        found = np.full(len(texts), -1, dtype=np.int64)
        if not len(texts) or not len(self._rows):
            return found
        hashes = pl.Series(texts, dtype=pl.String).hash().to_numpy()
        begins = np.searchsorted(self._hashes, hashes, side="left").tolist()
        ends = np.searchsorted(self._hashes, hashes, side="right").tolist()
        for place, (text, begin, end) in enumerate(zip(texts, begins, ends, strict=True)):
            for row in self._rows[begin:end].tolist():
                if self._values[row] == text:
                    found[place] = row
        return found
