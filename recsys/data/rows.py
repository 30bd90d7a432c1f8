"""Rows of a catalogue that grows: a block that stays where it is, and a few rows behind it. Knows no items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np
import numpy.typing as npt
from typing_extensions import TypeVar

from recsys.data.sequences import IntArray

Number = TypeVar("Number", bound=np.generic, default=np.float32)


@dataclass(frozen=True, eq=False)
class Rows(Generic[Number]):
    """[N, D] in two blocks. The first may be the map of a file, and is never copied, however many versions of the rows
    behind it there are."""

    first: npt.NDArray[Number]
    """[M, D]."""
    further: npt.NDArray[Number]
    """[N - M, D], of the same type."""

    @classmethod
    def of(cls, first: npt.NDArray[Number]) -> Rows[Number]:
        """One block."""
        return cls(first, first[:0])

    def __len__(self) -> int:
        return len(self.first) + len(self.further)

    def take(self, items: IntArray) -> npt.NDArray[Number]:
        """[..., D]: the rows of `items`, int64 [...] from 0 to N - 1."""
        count = len(self.first)
        late = items >= count
        if not late.any():
            return np.asarray(self.first[items])
        found = np.empty((*items.shape, self.further.shape[1]), dtype=self.first.dtype)
        found[~late] = self.first[items[~late]]
        found[late] = self.further[items[late] - count]
        return found

    def whole(self) -> npt.NDArray[Number]:
        """[N, D]: one block, a copy if there are two."""
        return np.concatenate([self.first, self.further]) if len(self.further) else self.first
