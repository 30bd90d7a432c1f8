"""Item-to-item collaborative filtering (Linden, Smith and York, 2003), with recent items counting more."""

from __future__ import annotations

from typing import Self

import numpy as np
from scipy import sparse

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.evaluation.baselines.counting import (
    evidence_then_popularity,
    item_counts,
    membership,
    recency_weights,
)
from recsys.evaluation.baselines.ranking import FloatArray, rank_by_score


class ItemKnn:
    """Similarity of two items: the cosine of the sets of users who had them.

    An item's score is the sum of its similarities to the history's items, each times `decay ** age`. Items similar
    to nothing in the history follow by popularity.
    """

    _counts: IntArray
    _similarity: sparse.csr_array

    def __init__(self, *, decay: float = 0.8, mask_seen: bool = True) -> None:
        self.decay = decay
        self.mask_seen = mask_seen

    def fit(self, train: Sequences, num_items: int, valid: Examples | None = None) -> Self:
        """Count co-occurrences; validation cases are not looked at."""
        self._counts = item_counts(train, num_items)
        users_items = membership(train, num_items)
        norms = np.sqrt(np.maximum(np.bincount(users_items.indices, minlength=num_items), 1))
        normalized = users_items.copy()
        normalized.data /= norms[users_items.indices].astype(np.float32)
        similarity = sparse.csr_array(normalized.T @ normalized)
        similarity.setdiag(0)
        similarity.eliminate_zeros()
        self._similarity = similarity
        return self

    def scores(self, histories: Sequences) -> FloatArray:
        """float32 [B, num_items]: summed similarity; below 0, in order of popularity, where there is none."""
        weights = recency_weights(histories, len(self._counts), self.decay)
        return evidence_then_popularity(weights, self._similarity, self._counts)

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        """Ranked lists int64 [B, k], best first, -1 where there are no more items."""
        return rank_by_score(self.scores(histories), k, seen=histories if self.mask_seen else None)
