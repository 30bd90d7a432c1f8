"""What goes into one contrastive batch: who bought what next, what was bought together, and what is no negative.

Made of training histories only. Knows indices, no texts, no vectors and no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.data import IntArray, Sequences
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.collaborative import item_pairs, unit_rows
from recsys.errors import DataError

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool]

_BLOCK_CELLS = 2**24


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B users, H mined negatives, P pairs of items."""

    users: IntArray
    """int64 [B]: rows of the histories, all different."""
    cuts: IntArray
    """int64 [B]: the positive is at this position; what lies before it is the user's history."""
    candidates: IntArray
    """int64 [B + H]: items; the positives, then the mined negatives of all users."""
    known: BoolArray
    """bool [B, B + H]: the user consumed the candidate in training, so it is no negative."""
    pairs: IntArray
    """int64 [P, 2]: items that were consumed together; P = B, or 0 without the second alignment."""
    pairs_known: BoolArray
    """bool [P, P]: left item p and right item q are the same or were consumed together."""


class PairSampler:
    """Draws batches from training histories.

    Raises:
        DataError: fewer than two histories have two items, so that nobody has both a past and a positive.
    """

    def __init__(
        self,
        train: Sequences,
        num_items: int,
        config: AlignmentConfig,
        nearest: IntArray | None = None,
        cuts: IntArray | None = None,
    ) -> None:
        """Count what the batches are drawn from.

        Args:
            train: training histories.
            num_items: of the catalogue.
            config: batch size, window, and whether there are hard negatives and pairs.
            nearest: int64 [num_items, pool], where each item's hard negatives come from; see `nearest_items`. None =
                no hard negatives.
            cuts: int64 [n], the only position each history's positive may have, 0 = the history is not drawn. None =
                any position but the first, of all histories.
        """
        self._config = config
        self._train = train
        self._nearest = nearest
        self._cuts = cuts
        eligible = np.flatnonzero(train.lengths >= 2 if cuts is None else cuts > 0)
        if len(eligible) < 2:
            raise DataError(
                f"contrastive tuning needs at least 2 training histories of 2 items or more, found {len(eligible)} of "
                f"{len(train)}; lower the minimum of the split, or bring more interactions"
            )
        self.eligible = eligible
        """int64: histories with a past and a positive."""
        owner = np.repeat(np.arange(len(train)), train.lengths)
        shape = (len(train), num_items)
        self._known = sparse.coo_array((np.ones(len(owner), dtype=np.int8), (owner, train.items)), shape=shape).tocsr()
        self._pairs = item_pairs(train, config.window)
        self._together = _together(self._pairs, num_items)
        self.log_rate = _log_rate(*self._positives(), num_items)
        """float32 [num_items]: log of how much more often than the average item each is a positive."""
        self.pair_log_rate = _log_rate(self._pairs.ravel(), np.ones(self._pairs.size), num_items)
        """float32 [num_items]: the same of being in a pair, on either side."""

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Endless batches. Every history comes once a pass, with a positive anywhere but at its beginning."""
        size = min(self._config.batch_size, len(self.eligible))
        while True:
            order = rng.permutation(self.eligible)
            for start in range(0, len(order) - size + 1, size):
                yield self._batch(order[start : start + size], rng)

    def _batch(self, users: IntArray, rng: np.random.Generator) -> Batch:
        train, config = self._train, self._config
        cuts = rng.integers(1, train.lengths_of(users)) if self._cuts is None else self._cuts[users]
        positives = train.items[train.offsets[users] + cuts]
        candidates = positives
        if self._nearest is not None:
            columns = rng.integers(self._nearest.shape[1], size=(len(users), config.hard_negatives))
            candidates = np.concatenate([positives, self._nearest[positives[:, None], columns].ravel()])
        num_pairs = len(users) if config.item_weight > 0 and len(self._pairs) else 0
        pairs = self._pairs[rng.integers(max(1, len(self._pairs)), size=num_pairs)]
        flipped = rng.random(num_pairs) < 0.5
        pairs = np.where(flipped[:, None], pairs[:, ::-1], pairs)
        return Batch(
            users=users,
            cuts=cuts,
            candidates=candidates,
            known=_cells(self._known, users, candidates),
            pairs=pairs,
            pairs_known=_cells(self._together, pairs[:, 0], pairs[:, 1]) | (pairs[:, :1] == pairs[:, 1]),
        )

    def _positives(self) -> tuple[IntArray, DoubleArray]:
        """Items at the places a positive is drawn from, and how often each place is drawn, up to a factor."""
        train = self._train
        if self._cuts is not None:
            return train.items[(train.offsets[:-1] + self._cuts)[self.eligible]], np.ones(len(self.eligible))
        lengths = np.repeat(train.lengths, train.lengths)
        later = np.arange(len(train.items)) > np.repeat(train.offsets[:-1], train.lengths)
        return train.items[later], 1.0 / (lengths[later] - 1)


def pasts(train: Sequences, users: IntArray, cuts: IntArray) -> Sequences:
    """The beginnings of the histories `users`, up to and without the positions `cuts` (int64 each)."""
    starts = train.offsets[users]
    parts = [train.items[start : start + cut] for start, cut in zip(starts, cuts, strict=True)]
    return Sequences.from_lists(parts, users=train.users[users].tolist())


def nearest_items(vectors: FloatArray, train: Sequences, window: int, pool: int) -> IntArray:
    """int64 [N, k]: for each item the k <= `pool` items of highest cosine that were never consumed together with it.

    Near in text but not in behaviour: the negatives that teach most. Items that nobody consumed are none: they would
    be pushed away for being new. Exact, in blocks. k is below `pool` only in a catalogue so small, or an item so
    widely consumed, that there are no more.

    Raises:
        DataError: some item was consumed together with all others.
    """
    num_items = len(vectors)
    together = _together(item_pairs(train, window), num_items)
    is_cold = np.ones(num_items, dtype=bool)
    is_cold[train.items] = False
    others = num_items - int(is_cold.sum()) - 1
    pool = min(pool, others - int(np.diff(together.indptr).max(initial=0)))
    if pool < 1:
        raise DataError(
            f"encoder.alignment.hard_negatives: an item was consumed together with all other {others}; set it to 0"
        )
    unit = unit_rows(vectors)
    nearest = np.empty((num_items, pool), dtype=np.int64)
    step = max(1, _BLOCK_CELLS // num_items)
    for start in range(0, num_items, step):
        rows = np.arange(start, min(start + step, num_items))
        cosine = unit[rows] @ unit.T
        cosine[together[rows].toarray() > 0] = -np.inf
        cosine[:, is_cold] = -np.inf
        cosine[np.arange(len(rows)), rows] = -np.inf
        nearest[rows] = np.argsort(-cosine, axis=1, kind="stable")[:, :pool]
    return nearest


def _log_rate(items: IntArray, weights: DoubleArray, num_items: int) -> FloatArray:
    """float32 [num_items]: log of share times `num_items`; 0 for items that are never drawn."""
    share = np.bincount(items, weights=weights, minlength=num_items)
    drawn = share > 0
    rate = np.zeros(num_items)
    rate[drawn] = np.log(share[drawn] * num_items / share.sum())
    return rate.astype(np.float32)


def _together(pairs: IntArray, num_items: int) -> sparse.csr_array:
    """Symmetric int8 [N, N], 1 where two items form a pair."""
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    ones = np.ones(len(both), dtype=np.int8)
    return sparse.coo_array((ones, (both[:, 0], both[:, 1])), shape=(num_items, num_items)).tocsr()


def _cells(matrix: sparse.csr_array, rows: IntArray, columns: IntArray) -> BoolArray:
    """bool [R, C]: which cells of the matrix at `rows` x `columns` are not zero."""
    return np.asarray(matrix[rows][:, columns].toarray() != 0)
