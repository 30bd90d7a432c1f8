"""Tables of a trie that a few items were put into, without a copy of the trie. Knows no items and no models.

A table of a larger trie is that of the smaller one with a few entries between the others, all numbers in it being a
little higher. What is written here is the difference: a look-up costs two binary searches more, and memory is that of
the new entries, however large the table below is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.data.sequences import IntArray


class Table(Protocol):
    """What a trie reads of a table: a `Tensor` of one dimension, or what stands for it."""

    @property
    def device(self) -> torch.device:
        """Where its entries come from."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes by itself."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Inserted:
    """K numbers that were put between those of a row of M, and so raised those behind them."""

    before: Tensor
    """int64 [K], ascending: the old number that each stands before; M behind the last."""

    numbers: Tensor
    """int64 [K], ascending: their own."""

    @classmethod
    def of(cls, before: npt.NDArray[np.integer[Any]]) -> Inserted:
        """From `before` alone."""
        return cls(
            before=torch.from_numpy(before.astype(np.int64)),
            numbers=torch.from_numpy((before + np.arange(len(before))).astype(np.int64)),
        )

    def raised(self, old: Tensor) -> Tensor:
        """int64 like `old`: the new numbers of old ones (int64 [...], 0 to M)."""
        return old + torch.searchsorted(self.before, old, right=True)

    def old(self, numbers: Tensor) -> Tensor:
        """int64 like `numbers` (int64 [...]): what they were before; -1 for those that were put in."""
        if not len(self.numbers):
            return numbers
        rank = torch.searchsorted(self.numbers, numbers, right=True)
        is_own = self.numbers[(rank - 1).clamp(min=0)] == numbers
        return torch.where(is_own, -1, numbers - rank)


@dataclass(frozen=True, kw_only=True, eq=False)
class Spliced:
    """A table of M + K entries, from one of M and what is different."""

    base: Tensor
    """int64 [M]."""
    index: Inserted
    """Which of the M + K were put in."""
    values: Inserted | None
    """How the entries of `base` are raised; None: they stay as they are."""
    own_at: Tensor
    """int64 [J], ascending, J at least K: all entries that were put in, and those of `base` that are replaced."""
    own: Tensor
    """int64 [J]: what stands there."""

    @classmethod
    def of(
        cls, base: Tensor, index: Inserted, values: Inserted | None, own_at: Tensor | IntArray, own: Tensor | IntArray
    ) -> Spliced:
        """From its fields, the last two of which may be arrays."""
        return cls(base=base, index=index, values=values, own_at=torch.as_tensor(own_at), own=torch.as_tensor(own))

    @property
    def device(self) -> torch.device:
        """That of the table below."""
        return self.base.device

    @property
    def nbytes(self) -> int:
        """Without the table below."""
        return self.own_at.nbytes + self.own.nbytes

    def __len__(self) -> int:
        return len(self.base) + len(self.index.before)

    def __getitem__(self, index: Tensor) -> Tensor:
        """int64 like `index`, int64 [...] from 0 to M + K - 1."""
        found = self.base[self.index.old(index).clamp(min=0)]
        if self.values is not None:
            found = self.values.raised(found)
        if not len(self.own):
            return found
        at = torch.searchsorted(self.own_at, index).clamp(max=len(self.own) - 1)
        return torch.where(self.own_at[at] == index, self.own[at], found)


@dataclass(frozen=True, eq=False)
class OldNumbers:
    """The table of what M + K numbers were before K of them were put in; -1 for these."""

    count: int
    """M + K."""
    index: Inserted

    @property
    def device(self) -> torch.device:
        """That of `index`."""
        return self.index.before.device

    @property
    def nbytes(self) -> int:
        """Nothing of its own."""
        return 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """int64 like `numbers`, int64 [...] from 0 to M + K - 1."""
        return self.index.old(numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class SplicedColumns:
    """Tables of equal length side by side, read as a `Tensor` [M + K, L]."""

    columns: tuple[Spliced, ...]

    @property
    def nbytes(self) -> int:
        """Without the tables below."""
        return sum(column.nbytes for column in self.columns)

    def __getitem__(self, key: tuple[Tensor | slice, int]) -> Tensor:
        """int64, like the rows that the first of `key` names: of the column that the second does."""
        rows, column = key
        table = self.columns[column]
        return table[torch.arange(len(table))[rows] if isinstance(rows, slice) else rows]


def entries(table: Table) -> Tensor:
    """All entries of a table, [M]."""
    return table if isinstance(table, Tensor) else table[torch.arange(len(table), device=table.device)]
