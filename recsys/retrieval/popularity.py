"""Items by their number of interactions. Knows no histories."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray

DEEPER = 4
"""How many times as many of the most popular items are looked at where rules leave too few of them."""
_ROOM = 64
"""One in so many places is kept free for items that are added."""


class PopularityPrior:
    """The log share of an item in all interactions, and the order that it makes. New items have none, and stand last.

    Args:
        counts: int64 [N], interactions of each item.
    """

    def __init__(self, counts: IntArray) -> None:
        self._num_items = len(counts)
        self._total = float(counts.sum() + len(counts))
        # Equal counts are ordered by dense index, so that a list does not change from one start to the next.
        self._make_room(counts, np.argsort(-counts, kind="stable"))

    @property
    def counts(self) -> IntArray:
        """int64 [N]: interactions of each item."""
        return self._counts[: self._num_items]

    @property
    def order(self) -> IntArray:
        """int64 [N]: items, most popular first."""
        return self._order[: self._num_items]

    def scores(self, items: IntArray) -> npt.NDArray[np.float32]:
        """float32: the logarithm of each item's share of all interactions, smoothed by one."""
        return np.asarray(np.log((self.counts[items] + 1.0) / self._total), dtype=np.float32)

    def with_items(self, count: int) -> PopularityPrior:
        """The same with so many further items; of a large catalogue no table is copied but once in a while."""
        if count == 0:
            return self
        twin = copy.copy(self)
        twin._num_items += count
        twin._total += count
        if twin._num_items > len(self._counts):
            further = np.arange(self._num_items, twin._num_items)
            twin._make_room(np.pad(self.counts, (0, count)), np.append(self.order, further))
        return twin

    def _make_room(self, counts: IntArray, order: IntArray) -> None:
        """What is written behind the items there are is what any further ones have: versions may share it."""
        room = max(1, len(counts) // _ROOM)
        self._counts = np.pad(counts, (0, room))
        self._order = np.append(order, np.arange(len(order), len(order) + room))
