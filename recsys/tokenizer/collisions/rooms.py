"""Room below every prefix: items leave prefixes that have more of them than codes. Knows codes and codebooks only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.tokenizer.residual import DoubleArray, FloatArray, nearest_codes, squared_distances, summed_codes


def check_room(num_items: int, sizes: Sequence[int]) -> None:
    """Raise DataError when `num_items` items, new and old, do not fit into codebooks of these sizes."""
    if num_items > math.prod(sizes):
        raise DataError(
            f"{num_items} items do not fit into {math.prod(sizes)} codes (codebook sizes {list(sizes)}); "
            "raise tokenizer.levels or tokenizer.codebook_size"
        )


def near_occupied(codes: IntArray, sizes: Sequence[int], occupied: IntArray) -> IntArray:
    """Of `occupied`, int64 [m, L], the codes that can matter to int64 [n, L] new ones: those below the same prefixes of
    L - 1 codes, or all of them where a prefix is overfull, whose items then move elsewhere.

    One item among ten million is told apart from a few others, not from all.
    """
    near = occupied
    prefix, near_prefix = np.zeros(len(codes), dtype=np.int64), np.zeros(len(near), dtype=np.int64)
    for level, size in enumerate(sizes[:-1]):
        prefix, near_prefix = prefix * size + codes[:, level], near_prefix * size + near[:, level]
        # Numbers small enough for a table: there are no more prefixes than items.
        prefixes, prefix = np.unique(prefix, return_inverse=True)
        found = np.isin(near_prefix, prefixes)
        near, near_prefix = near[found], np.searchsorted(prefixes, near_prefix[found])
        counts = np.bincount(prefix, minlength=len(prefixes)) + np.bincount(near_prefix, minlength=len(prefixes))
        if counts.max(initial=0) > math.prod(sizes[level + 1 :]):
            return occupied
    return near


def make_room(
    codes: IntArray, latents: DoubleArray, codebooks: Sequence[FloatArray], occupied: IntArray
) -> tuple[IntArray, IntArray]:
    """Move the worst fitting items of overfull prefixes to the nearest sibling with room, level by level.

    Args:
        codes: int64 [n, L].
        latents: float64 [n, d].
        codebooks: L arrays float32 [K_l, d].
        occupied: int64 [m, L], codes that stay where they are; n + m codes must fit in all.

    Returns:
        int64 [n, L], the codes, of which no prefix has more items than codes below it; and int64 [n + m], the number
        of each item's prefix of L - 1 codes, of `codes` and then of `occupied`.
    """
    codes = codes.copy()
    sizes = [len(codebook) for codebook in codebooks]
    parents = np.zeros(len(codes) + len(occupied), dtype=np.int64)
    for level in range(len(sizes) - 1):
        _relieve_overfull(codes, latents, codebooks, occupied, parents, level, math.prod(sizes[level + 1 :]))
        keys = parents * sizes[level] + np.concatenate([codes[:, level], occupied[:, level]])
        parents = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return codes, parents


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
    overfull = np.unique(keys[counts > capacity] // size)
    if len(overfull) == 0:
        return
    order = np.argsort(parents, kind="stable")
    starts = np.searchsorted(parents, overfull, side="left", sorter=order)
    ends = np.searchsorted(parents, overfull, side="right", sorter=order)
    for start, end in zip(starts, ends, strict=True):
        members = order[start:end]
        room = capacity - np.bincount(column[members], minlength=size)
        items = members[members < num_items]
        for code in np.flatnonzero(room < 0):
            rows = items[codes[items, level] == code]
            residual = latents[rows] - summed_codes(codes[rows, :level], codebooks)
            distances = squared_distances(residual, codebooks[level])
            worst = np.argsort(-distances[:, code], kind="stable")[: -room[code]]
            for row in worst:
                target = np.where(room > 0, distances[row], np.inf).argmin()
                room[target] -= 1
                codes[rows[row], level] = target
            room[code] = 0
            below = residual[worst] - codebooks[level][codes[rows[worst], level]]
            codes[rows[worst], level + 1 :] = nearest_codes(below, codebooks[level + 1 :])
