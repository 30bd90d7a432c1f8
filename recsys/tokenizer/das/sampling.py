"""What is drawn for a training step of DAS, and what counts as known to belong together. Knows indices only.

Users are rows of the training sequences, items are dense indices. Two items belong together when a user clicked them at
most `window` clicks apart, and are drawn in proportion to count / sqrt(deg_a deg_b), deg being the row sums of the
counts; two users, when they clicked the same item: a click is drawn and then another user of its item, which gives a
pair that shares an item of n users the weight 1 / (n - 1). Both weights are ours; the paper's were not at hand.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.data import IntArray, Sequences
from recsys.encoder.collaborative import cooccurrence_counts
from recsys.errors import DataError
from recsys.tokenizer.residual import DoubleArray

BoolArray = npt.NDArray[np.bool]


class Behaviour:
    """Training clicks, ready to be drawn from.

    Args:
        train: training sequences; nothing else may ever be in it.
        num_items: size of the catalogue that its items index.
        window: see the module.

    Raises:
        DataError: there is no click, or an item lies outside of the catalogue.
    """

    def __init__(self, train: Sequences, num_items: int, window: int) -> None:
        if len(train.items) == 0:
            raise DataError("train holds no interaction; das needs training sequences")
        if train.items.min() < 0 or train.items.max() >= num_items:
            raise DataError(
                f"train holds item {int(train.items.max())}, but there are embeddings of {num_items} items; "
                "both must be of the same catalogue"
            )
        self.num_users, self.num_items = len(train), num_items
        users = np.repeat(np.arange(len(train)), train.lengths)
        self.clicks: IntArray = np.unique(np.stack([users, train.items], axis=1), axis=0)
        """int64 [C, 2]: distinct (user, item), in order of users."""
        shape = (self.num_users, num_items)
        self._matrix = sparse.csr_array((np.ones(len(self.clicks), np.int32), self.clicks.T), shape=shape)
        self._fans = sparse.csr_array(self._matrix.T)
        self.item_clicks: IntArray = np.bincount(train.items, minlength=num_items)
        """int64 [N]: all clicks of each item, repeats included."""

        self._together = cooccurrence_counts(train, num_items, window)
        cells = self._together.tocoo()
        degree = np.asarray(self._together.sum(axis=1)).ravel()
        self._pairs = np.stack([cells.row, cells.col], axis=1).astype(np.int64)
        weight = cells.data / np.sqrt(degree[cells.row] * degree[cells.col])
        self._cumulative = np.cumsum(weight)
        self._shared_clicks = np.flatnonzero(np.diff(self._fans.indptr)[self.clicks[:, 1]] > 1)

        self.user_frequency: DoubleArray = np.diff(self._matrix.indptr) / len(self.clicks)
        """float64 [U]: the probability of each user in a draw of clicks."""
        self.item_frequency: DoubleArray = np.diff(self._fans.indptr) / len(self.clicks)
        """float64 [N]: the same of each item."""
        self.item_pair_frequency: DoubleArray = np.bincount(self._pairs[:, 0], weight, num_items) / max(
            weight.sum(), np.finfo(np.float64).tiny
        )
        """float64 [N]: the probability of each item as one side of an item pair."""
        shared = np.bincount(self.clicks[self._shared_clicks, 0], minlength=self.num_users)
        self.user_pair_frequency: DoubleArray = shared / max(shared.sum(), 1)
        """float64 [U]: the same of each user in user pairs."""

    @property
    def has_item_pairs(self) -> bool:
        """Whether any two items belong together."""
        return len(self._pairs) > 0

    @property
    def has_user_pairs(self) -> bool:
        """Whether any two users belong together."""
        return len(self._shared_clicks) > 0

    def user_popularity(self) -> DoubleArray:
        """float64 [U]: the mean log(1 + clicks) of a user's items; 0 for users without one."""
        sums = self._matrix @ np.log1p(self.item_clicks)
        return np.asarray(sums / np.maximum(np.diff(self._matrix.indptr), 1), dtype=np.float64)

    def draw_item_pairs(self, size: int, rng: np.random.Generator) -> IntArray:
        """int64 [size, 2], with replacement."""
        drawn = np.searchsorted(self._cumulative, rng.random(size) * self._cumulative[-1], side="right")
        pairs: IntArray = self._pairs[np.minimum(drawn, len(self._pairs) - 1)]
        return pairs

    def draw_user_pairs(self, size: int, rng: np.random.Generator) -> IntArray:
        """int64 [size, 2], with replacement; the two of a pair differ."""
        users, items = self.clicks[rng.choice(self._shared_clicks, size)].T
        start, end = self._fans.indptr[items], self._fans.indptr[items + 1]
        # One of the item's users but the first, and the first in place of the user itself: even over all others.
        others = self._fans.indices[start + 1 + rng.integers(0, end - start - 1)].astype(np.int64)
        others = np.where(others == users, self._fans.indices[start], others)
        return np.stack([users, others], axis=1)

    def draw_unclicked(self, users: IntArray, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        """int64 [B]: one item a user, even over the catalogue; bool [B]: whether the user did not click it."""
        items = rng.integers(0, self.num_items, len(users))
        clicked = np.asarray(self._matrix[users, items]).ravel() > 0
        return items, ~clicked

    def clicked(self, users: IntArray, items: IntArray) -> BoolArray:
        """bool [B, C]: whether user b clicked item c."""
        return np.asarray(self._matrix[users][:, items].toarray() > 0)

    def items_together(self, a: IntArray, b: IntArray) -> BoolArray:
        """bool [B, C]: whether item b of `a` and item c of `b` belong together or are the same."""
        return np.asarray((self._together[a][:, b].toarray() > 0) | (a[:, None] == b))

    def users_together(self, a: IntArray, b: IntArray) -> BoolArray:
        """bool [B, C]: whether user b of `a` and user c of `b` belong together or are the same."""
        return np.asarray(((self._matrix[a] @ self._matrix[b].T).toarray() > 0) | (a[:, None] == b))
