"""One item per full code: items whose nearest codes collide get other codes nearby. Knows codes and codebooks only.

Items that agree on all but the last code compete for the codes of the last level. Each such group is solved as an
assignment problem (Hungarian algorithm): as few items as possible change their code, and among those solutions the
one with the least squared distance is taken, so exact duplicates are separated too and the moved item lands on a
near neighbour of its code. The widespread alternatives do worse: an ordinal token says nothing about the item, and
running Sinkhorn on each colliding group picks codes that are nearly random and cannot split duplicates.

A prefix that has more items than free codes below it passes its worst fitting items on to the nearest sibling with
room, one level up, and further up where needed; that fails only when there are more items than codes in total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.tokenizer.residual import DoubleArray, FloatArray, nearest_codes, squared_distances, summed_codes

# The Hungarian algorithm is cubic: this many cells take about a second, and larger groups are assigned greedily.
_HUNGARIAN_CELLS = 1 << 20


def resolve_collisions(
    raw_codes: IntArray, latents: DoubleArray, codebooks: Sequence[FloatArray], taken: IntArray | None = None
) -> IntArray:
    """Unique codes, near the raw ones.

    Args:
        raw_codes: int64 [n, L], each item's nearest codes.
        latents: float64 [n, d], the vectors these codes stand for.
        codebooks: L arrays float32 [K_l, d].
        taken: int64 [m, L], unique codes of other items; they stay where they are and none of them is given out.

    Returns:
        int64 [n, L]: rows unlike each other and unlike all rows of `taken`.

    Raises:
        DataError: more items than codes.
    """
    num_items, levels = raw_codes.shape
    sizes = [len(codebook) for codebook in codebooks]
    occupied = np.zeros((0, levels), dtype=np.int64) if taken is None else taken
    if num_items + len(occupied) > math.prod(sizes):
        raise DataError(
            f"{num_items + len(occupied)} items do not fit into {math.prod(sizes)} codes (codebook sizes {sizes}); "
            "raise tokenizer.levels or tokenizer.codebook_size"
        )
    codes = raw_codes.copy()
    parents = np.zeros(num_items + len(occupied), dtype=np.int64)
    for level in range(levels - 1):
        capacity = math.prod(sizes[level + 1 :])
        _relieve_overfull(codes, latents, codebooks, occupied, parents, level, capacity)
        keys = parents * sizes[level] + np.concatenate([codes[:, level], occupied[:, level]])
        parents = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    _separate_leaves(codes, latents, codebooks, occupied, parents)
    return codes


def _relieve_overfull(
    codes: IntArray,
    latents: DoubleArray,
    codebooks: Sequence[FloatArray],
    occupied: IntArray,
    parents: IntArray,
    level: int,
    capacity: int,
) -> None:
    """Move items, in place, until no prefix that ends at `level` has more than `capacity` items below it.

    `parents` [n + m] numbers the prefixes before `level`; each of them has room for its own items by now.
    """
    num_items, size = len(codes), len(codebooks[level])
    column = np.concatenate([codes[:, level], occupied[:, level]])
    keys, counts = np.unique(parents * size + column, return_counts=True)
    for parent in np.unique(keys[counts > capacity] // size):
        members = np.flatnonzero(parents == parent)
        room = capacity - np.bincount(column[members], minlength=size)
        items = members[members < num_items]
        residual = latents[items] - summed_codes(codes[items, :level], codebooks)
        distances = squared_distances(residual, codebooks[level])
        own = distances[np.arange(len(items)), codes[items, level]]
        for code in np.flatnonzero(room < 0):
            rows = np.flatnonzero(codes[items, level] == code)
            movers = rows[np.argsort(-own[rows], kind="stable")][: -room[code]]
            for row in movers:
                target = np.where(room > 0, distances[row], np.inf).argmin()
                room[target] -= 1
                codes[items[row], level] = target
            below = residual[movers] - codebooks[level][codes[items[movers], level]]
            codes[items[movers], level + 1 :] = nearest_codes(below, codebooks[level + 1 :])


def _separate_leaves(
    codes: IntArray,
    latents: DoubleArray,
    codebooks: Sequence[FloatArray],
    occupied: IntArray,
    parents: IntArray,
) -> None:
    """Make the last codes of each prefix unique, in place; every prefix has enough free ones by now."""
    num_items, size = len(codes), len(codebooks[-1])
    keys = parents * size + np.concatenate([codes[:, -1], occupied[:, -1]])
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    colliding = np.unique(parents[:num_items][counts[inverse[:num_items]] > 1])
    order = np.argsort(parents, kind="stable")
    starts = np.searchsorted(parents[order], colliding, side="left")
    ends = np.searchsorted(parents[order], colliding, side="right")
    for start, end in zip(starts, ends, strict=True):
        members = order[start:end]
        items = members[members < num_items]
        free = np.setdiff1d(np.arange(size), occupied[members[members >= num_items] - num_items, -1])
        residual = latents[items] - summed_codes(codes[items, :-1], codebooks)
        distances = squared_distances(residual, codebooks[-1][free])
        unchanged = codes[items, -1][:, None] == free[None, :]
        assign = _assign_optimally if distances.size <= _HUNGARIAN_CELLS else _assign_greedily
        codes[items, -1] = free[assign(distances, unchanged)]


def _assign_optimally(distances: DoubleArray, unchanged: np.ndarray[tuple[int, ...], np.dtype[np.bool]]) -> IntArray:
    """int64 [g]: a distinct column per row; fewest changes first, least total distance second."""
    penalty = len(distances) * distances.max() + 1.0
    _, columns = linear_sum_assignment(distances + penalty * ~unchanged)
    return np.asarray(columns, dtype=np.int64)


def _assign_greedily(distances: DoubleArray, unchanged: np.ndarray[tuple[int, ...], np.dtype[np.bool]]) -> IntArray:
    """Like `_assign_optimally`, but each row takes the best column left, those with the best fit to their own first."""
    own = np.where(unchanged, distances, np.inf).min(axis=1)
    order = np.argsort(own, kind="stable")
    columns = np.full(len(distances), -1, dtype=np.int64)
    is_free = np.ones(distances.shape[1], dtype=bool)
    # The closest item keeps each contested code; the first occurrence in `order` is the closest.
    keepers, wanted = np.nonzero(unchanged[order])
    kept, first = np.unique(wanted, return_index=True)
    columns[order[keepers[first]]] = kept
    is_free[kept] = False
    for row in order[columns[order] < 0]:
        columns[row] = np.where(is_free, distances[row], np.inf).argmin()
        is_free[columns[row]] = False
    return columns
