"""A path for items that the model never saw: places reserved at the end of a list. Knows lists, not models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recsys.generator.constraints import Cap
from recsys.generator.diversity import walk_in_order
from recsys.generator.recommendations import Recommendations


def reserve_slots(
    found: Recommendations, new: Recommendations, is_new: npt.NDArray[np.bool_], caps: Sequence[Cap] = ()
) -> Recommendations:
    """`found` with its last places taken by the best new items, as many as `new` has columns.

    New items that the search found by itself count: a list with enough of them stays as it is. The order of the other
    items does not change, and the scores stay those of the model, so they need not fall from one place to the next. A
    list that would break a cap stays as it is. Certified is what was made of two certified lists.

    Args:
        found: lists of k items.
        new: lists of at most k items, all of them new.
        is_new: bool [N].
        caps: that the lists keep.
    """
    slots = new.items.shape[1]
    items, scores = found.items.copy(), found.scores.copy()
    for row in range(len(items)):
        listed = items[row][items[row] >= 0]
        fresh = ~np.isin(new.items[row], listed) & (new.items[row] >= 0)
        count = min(slots - int(is_new[listed].sum()), int(fresh.sum()))
        if count <= 0:
            continue
        # New items that are in the list already keep their places: the worst of the others give way.
        old = np.flatnonzero((items[row] >= 0) & ~is_new[np.maximum(items[row], 0)])
        free = np.count_nonzero(items[row] < 0)
        leaving = old[len(old) - max(0, count - free) :]
        stay = np.setdiff1d(np.flatnonzero(items[row] >= 0), leaving)
        joined_items = np.concatenate([items[row][stay], new.items[row][fresh][:count]])
        joined_scores = np.concatenate([scores[row][stay], new.scores[row][fresh][:count]])
        items[row, : len(joined_items)] = joined_items
        scores[row, : len(joined_scores)] = joined_scores
    if caps:
        breaks = walk_in_order(items, caps, items.shape[1]).sum(axis=1) < (items >= 0).sum(axis=1)
        items[breaks], scores[breaks] = found.items[breaks], found.scores[breaks]
    certified = None
    if found.certified is not None and new.certified is not None:
        certified = found.certified & new.certified
    return Recommendations(items=items, scores=scores, certified=certified, short=found.short)
