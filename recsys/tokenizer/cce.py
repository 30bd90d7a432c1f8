"""Ranking metrics that do not profit from collisions (CCE, arXiv 2605.25330). Knows ranks and group sizes only.

A generator returns codes, users get items. When g items share the target's codes, the codes stand for any of them:
their hit is worth the expected share of it. With one item per code these are the usual Hit@K and NDCG@K. Tokenizers
with different collision rates are compared by these only: hits on codes reward those that collide.
"""

from __future__ import annotations

import numpy as np

from recsys.data import IntArray
from recsys.tokenizer.residual import DoubleArray


def items_before(ranked_groups: IntArray, targets: IntArray, group_sizes: IntArray) -> IntArray:
    """How many items a list of codes expands to before it comes to the target's.

    Args:
        ranked_groups: int64 [n, R], per case the generated codes, best first, as numbers of groups of items with the
            same codes; -1 = no item has them.
        targets: int64 [n], the target's group.
        group_sizes: int64 [G], items per group.

    Returns:
        int64 [n]; the largest integer where the target's codes were not generated, which no metric counts.
    """
    sizes = np.where(ranked_groups >= 0, group_sizes[ranked_groups], 0)
    found = ranked_groups == targets[:, None]
    before = (np.cumsum(sizes, axis=1) - sizes)[np.arange(len(targets)), found.argmax(axis=1)]
    return np.where(found.any(axis=1), before, np.iinfo(np.int64).max)


def item_hit(before: IntArray, group_sizes: IntArray, k: int) -> DoubleArray:
    """ItemHit@k, float64 [n]: m / g, where m = min(g, max(0, k - P)) of the target's group are within the first k.

    Args:
        before: int64 [n], P: items before the target's codes, see `items_before`.
        group_sizes: int64 [n], g: items that share the target's codes, the target among them.
        k: length of the list of items.
    """
    return _shown(before, group_sizes, k) / group_sizes


def item_ndcg(before: IntArray, group_sizes: IntArray, k: int) -> DoubleArray:
    """ItemNDCG@k, float64 [n]: (1 / g) sum over i = 1..m of 1 / log2(P + i + 1); arguments as for `item_hit`."""
    gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    start = np.minimum(before, k)
    return np.asarray((gains[start + _shown(before, group_sizes, k)] - gains[start]) / group_sizes)


def _shown(before: IntArray, group_sizes: IntArray, k: int) -> IntArray:
    return np.asarray(np.minimum(group_sizes, k - np.minimum(before, k)))
