"""One item per full code, by any of the strategies. Knows codes and codebooks, not how they were learned.

The default, `assignment`, moves as few items as possible, each to a code near its own. The alternatives do worse: an
ordinal code says nothing about the item, and running Sinkhorn on each colliding group picks codes that are nearly
random and cannot split duplicates.

A prefix that has more items than free codes below it passes its worst fitting items on to the nearest sibling with
room, one level up, and further up where needed; that fails only when there are more items than codes in total.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.data import IntArray
from recsys.tokenizer.collisions.assignment import separate_leaves
from recsys.tokenizer.collisions.group_sinkhorn import spread_groups
from recsys.tokenizer.collisions.ordinal import count_within_groups
from recsys.tokenizer.collisions.rooms import check_room, make_room, near_occupied
from recsys.tokenizer.config import CollisionStrategy
from recsys.tokenizer.residual import DoubleArray, FloatArray


def resolve_collisions(
    raw_codes: IntArray,
    latents: DoubleArray,
    codebooks: Sequence[FloatArray],
    taken: IntArray | None = None,
    *,
    strategy: CollisionStrategy = "assignment",
) -> IntArray:
    """Unique codes, near the raw ones.

    Args:
        raw_codes: int64 [n, L], each item's nearest codes, or others to start from.
        latents: float64 [n, d], the vectors these codes stand for.
        codebooks: L arrays float32 [K_l, d].
        taken: int64 [m, L], unique codes of other items; they stay where they are and none of them is given out.
        strategy: `assignment`: fewest items moved, then least squared distance. `greedy`: of the items on a code the
            closest keeps it, the others take the nearest free one. `group_sinkhorn`: LC-Rec's loop, then `assignment`
            for what it leaves, exact duplicates above all. `extra_level`: the last level counts; its codebook must be
            an `ordinal_codebook`.

    Returns:
        int64 [n, L]: rows unlike each other and unlike all rows of `taken`.

    Raises:
        DataError: more items than codes, or, for `extra_level`, than codes of the counting level in one group.
    """
    occupied = np.zeros((0, raw_codes.shape[1]), dtype=np.int64) if taken is None else taken
    check_room(len(raw_codes) + len(occupied), [len(codebook) for codebook in codebooks])
    if strategy == "extra_level":
        return count_within_groups(raw_codes, latents, codebooks, occupied)
    start = spread_groups(raw_codes, latents, codebooks) if strategy == "group_sinkhorn" else raw_codes
    occupied = near_occupied(start, [len(codebook) for codebook in codebooks], occupied)
    codes, parents = make_room(start, latents, codebooks, occupied)
    separate_leaves(codes, latents, codebooks, occupied, parents, optimal=strategy != "greedy")
    return codes
