"""Batches of interactions with one negative each, and the interactions that training stops by. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.data import Examples, IntArray, Sequences

_REDRAWS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B interactions; `users` are rows of the interaction matrix."""

    users: IntArray
    """int64 [B]."""
    items: IntArray
    """int64 [B]: what they consumed."""
    negatives: IntArray
    """int64 [B]: what they did not."""


def batches(interactions: sparse.csr_array, batch_size: int, random: np.random.Generator) -> Iterator[Batch]:
    """Endless batches of the non-zero cells of [U, N]; each pass is a new order, without its incomplete last batch.

    Negatives are drawn evenly from the items that someone consumed: pushing items without interactions away would
    only be their punishment for being new. A user who has them all gets one of them.
    """
    cells = interactions.tocoo()
    users, items = cells.row.astype(np.int64), cells.col.astype(np.int64)
    num_items = interactions.shape[1]
    known = np.sort(users * num_items + items)
    pool = np.unique(items)
    size = min(batch_size, len(users))
    while True:
        order = random.permutation(len(users))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            negatives = random.choice(pool, size)
            for _ in range(_REDRAWS):
                keys = users[rows] * num_items + negatives
                seen = np.flatnonzero(known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys)
                if len(seen) == 0:
                    break
                negatives[seen] = random.choice(pool, len(seen))
            yield Batch(users=users[rows], items=items[rows], negatives=negatives)


def keep_back_last(train: Sequences, share: float, random: np.random.Generator) -> tuple[Sequences, Examples]:
    """Divide TRAINING sequences into what is fitted on and the last interactions of some users, to stop by.

    Users are drawn from those with at least 3 items whose last one is new to them and known from someone else, so that
    no user and no item is lost. At most `share` of all interactions goes.

    Returns:
        rest: the sequences without those interactions.
        cases: what was left to these users, and the item they had last.
    """
    limit = int(share * len(train.items))
    counts = np.bincount(train.items)
    last = train.offsets[1:] - 1
    chosen: list[int] = []
    for row in random.permutation(np.flatnonzero(train.lengths >= 3)).tolist():
        if len(chosen) == limit:
            break
        item = train.items[last[row]]
        if counts[item] >= 2 and item not in train[row][:-1]:
            counts[item] -= 1
            chosen.append(row)
    rows = np.sort(np.asarray(chosen, dtype=np.int64))
    kept = np.ones(len(train.items), dtype=bool)
    kept[last[rows]] = False
    lengths = train.lengths.copy()
    lengths[rows] -= 1
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rest = Sequences(users=train.users, offsets=offsets, items=train.items[kept])
    return rest, Examples(histories=rest.select(rows), targets=train.items[last[rows]])
