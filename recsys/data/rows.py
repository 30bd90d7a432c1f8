"""Vectors of a catalogue that grows: a block that stays where it is, and a few rows behind it. Knows no items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Rows:
    """float32 [N, D] in two blocks. The first may be the map of a file, and is never copied, however many versions of
    the rows behind it there are."""

    first: FloatArray
    """float32 [M, D]."""
    further: FloatArray
    """float32 [N - M, D]."""

    @classmethod
    def of(cls, first: FloatArray) -> Rows:
        """One block."""
        return cls(first, first[:0])

    def __len__(self) -> int:
        return len(self.first) + len(self.further)

    def take(self, items: IntArray) -> FloatArray:
        """float32 [..., D]: the rows of `items`, int64 [...] from 0 to N - 1."""
        count = len(self.first)
        late = items >= count
        if not late.any():
            return np.asarray(self.first[items])
        found = np.empty((*items.shape, self.further.shape[1]), dtype=np.float32)
        found[~late] = self.first[items[~late]]
        found[late] = self.further[items[late] - count]
        return found
