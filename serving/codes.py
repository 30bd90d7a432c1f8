"""Which items have semantic IDs that begin alike. Knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeNeighbours:
    """The neighbours of one item."""

    items: IntArray
    """int64 [n], n <= limit: the longest common beginning first, then the most popular, then by index."""
    shared: IntArray
    """int64 [n]: codes that each begins with in common, at least 1."""
    sharing: IntArray
    """int64 [levels]: other items that have the first 1, 2, .. codes in common."""


def nearest_codes(
    codes: Rows[np.int64], item_counts: IntArray, item: int, limit: int, among: npt.NDArray[np.bool_] | None = None
) -> CodeNeighbours:
    """The items whose semantic IDs begin like that of `item`.

    Args:
        codes: [num_items, levels].
        item_counts: int64 [num_items], interactions of each.
        item: a dense index.
        limit: at most so many.
        among: bool [num_items], which items may be neighbours; None: all.
    """
    own = codes.take(np.array(item))
    shared = np.concatenate(
        [np.logical_and.accumulate(block == own, axis=1).sum(axis=1) for block in (codes.first, codes.further)]
    )
    shared[item] = 0
    if among is not None:
        shared[~among] = 0
    near = np.flatnonzero(shared)
    best = near[np.lexsort((near, -item_counts[near], -shared[near]))][:limit]
    sharing = np.array([(shared >= depth).sum() for depth in range(1, len(own) + 1)])
    return CodeNeighbours(items=best, shared=shared[best], sharing=sharing)
