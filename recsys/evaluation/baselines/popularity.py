"""The most popular items for everyone."""

from __future__ import annotations

from typing import Self

import numpy as np

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.evaluation.baselines.counting import item_counts
from recsys.evaluation.baselines.ranking import FloatArray, rank_by_score


class Popularity:
    """Ranks items by their number of training interactions; the floor that any model must clear."""

    _counts: IntArray

    def __init__(self, *, mask_seen: bool = True) -> None:
        self.mask_seen = mask_seen

    def fit(self, train: Sequences, num_items: int, valid: Examples | None = None) -> Self:
        """Count; validation cases are not looked at."""
        self._counts = item_counts(train, num_items)
        return self

    def scores(self, histories: Sequences) -> FloatArray:
        """float32 [B, num_items]: training counts, the same for every history."""
        return np.tile(self._counts.astype(np.float32), (len(histories), 1))

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        """Ranked lists int64 [B, k], best first, -1 where there are no more items."""
        longest = int(histories.lengths.max(initial=0)) if self.mask_seen else 0
        # Whatever a history has, the rest of so long a beginning suffices: no row an item is made for each user.
        best = rank_by_score(self._counts.astype(np.float32)[None], k + longest)[0]
        known = best[best >= 0]
        place = np.full(len(self._counts), -1, dtype=np.int64)
        place[known] = np.arange(len(known))
        is_seen = np.zeros((len(histories), len(best)), dtype=bool)
        if self.mask_seen:
            rows, seen = np.repeat(np.arange(len(histories)), histories.lengths), place[histories.items]
            is_seen[rows[seen >= 0], seen[seen >= 0]] = True
        order = np.argsort(is_seen, axis=1, kind="stable")[:, :k]
        return np.where(np.take_along_axis(is_seen, order, axis=1), -1, best[order])
