"""Unique last codes under every prefix, near the raw ones. Knows codes and codebooks only.

Items that agree on all but the last code compete for the codes of the last level. `assignment` changes as few items as
possible and, among those solutions, takes the one with the least squared distance: a Hungarian assignment per prefix.
Most prefixes do not need one: when each moved item's nearest free code is nobody else's, that is the optimum, and it is
found for thousands of prefixes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from recsys.data import IntArray
from recsys.tokenizer.residual import DoubleArray, FloatArray, squared_distances, summed_codes

BoolArray = npt.NDArray[np.bool]

# The Hungarian algorithm is cubic: this many cells take about a second, and larger prefixes are assigned greedily.
_HUNGARIAN_CELLS = 1 << 20
_BLOCK_CELLS = 1 << 22


def separate_leaves(
    codes: IntArray,
    latents: DoubleArray,
    codebooks: Sequence[FloatArray],
    occupied: IntArray,
    parents: IntArray,
    *,
    optimal: bool,
) -> None:
    """Make the last codes under each prefix unique, in place; items that share no code keep theirs.

    Args:
        codes: int64 [n, L]; every prefix has enough codes for its items, see `make_room`.
        latents: float64 [n, d].
        codebooks: L arrays float32 [K_l, d].
        occupied: int64 [m, L], unique codes that stay where they are and are not given out.
        parents: int64 [n + m], the number of each item's prefix, of `codes` and then of `occupied`.
        optimal: the least total distance; False = of the items on a code the closest keeps it, and the others, the
            closest first, take the nearest code that is left.
    """
    num_items, size = len(codes), len(codebooks[-1])
    column = np.concatenate([codes[:, -1], occupied[:, -1]])
    _, inverse, counts = np.unique(parents * size + column, return_inverse=True, return_counts=True)
    contested = np.flatnonzero(counts[inverse[:num_items]] > 1)
    if len(contested) == 0:
        return
    crowded = np.flatnonzero(np.bincount(parents[contested]))
    number = np.full(parents.max() + 1, -1, dtype=np.int64)
    number[crowded] = np.arange(len(crowded))
    prefix = number[parents]
    members = np.flatnonzero(prefix >= 0)
    members = members[np.argsort(prefix[members], kind="stable")]
    contested = contested[np.argsort(prefix[contested], kind="stable")]
    member_bounds = np.searchsorted(prefix[members], np.arange(len(crowded) + 1))
    bounds = np.searchsorted(prefix[contested], np.arange(len(crowded) + 1))
    for first, end in _blocks(np.diff(bounds) + 1, _BLOCK_CELLS // size):
        block_members = members[member_bounds[first] : member_bounds[end]]
        used = np.zeros((end - first, size), dtype=bool)
        used[prefix[block_members] - first, column[block_members]] = True
        fixed = np.zeros_like(used)
        block_occupied = block_members[block_members >= num_items]
        fixed[prefix[block_occupied] - first, column[block_occupied]] = True
        rows = contested[bounds[first] : bounds[end]]
        residual = latents[rows] - summed_codes(codes[rows, :-1], codebooks)
        place = prefix[rows] - first
        if len(rows) * size > _BLOCK_CELLS:  # then it is one prefix, see `_blocks`
            codes[rows, -1] = _assign_greedily(residual, codebooks[-1], codes[rows, -1], used[0], fixed[0])
        else:
            codes[rows, -1] = _separate_block(residual, codebooks[-1], codes[rows, -1], place, used, fixed, optimal)


def _blocks(rows: IntArray, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring prefixes with at most `limit` rows together, or of one prefix."""
    total = np.concatenate([[0], np.cumsum(rows)])
    first = 0
    while first < len(rows):
        end = max(first + 1, int(np.searchsorted(total, total[first] + limit, side="right")) - 1)
        yield first, end
        first = end


def _separate_block(
    residual: DoubleArray,
    codebook: FloatArray,
    own: IntArray,
    place: IntArray,
    used: BoolArray,
    fixed: BoolArray,
    optimal: bool,
) -> IntArray:
    """int64 [r]: the new last codes of the contested items of P prefixes.

    Args:
        residual: float64 [r, d], what the last level sees.
        codebook: float32 [K, d].
        own: int64 [r], the codes they have now.
        place: int64 [r], ascending: their prefix in the rows of `used`.
        used: bool [P, K], codes that any item has now.
        fixed: bool [P, K], codes of items that stay.
        optimal: see `separate_leaves`.
    """
    size = len(codebook)
    rows = np.arange(len(own))
    distances = squared_distances(residual, codebook)
    own_distance = distances[rows, own]
    free = np.where(used[place], np.inf, distances)
    target = free.argmin(axis=1)
    # The last to leave its code is the one to whom leaving would cost most; to be greedy is to look at the fit alone.
    reluctance = free[rows, target] - own_distance if optimal else -own_distance
    keys = place * size + own
    order = np.lexsort((rows, -reluctance, keys))
    keepers = order[np.unique(keys[order], return_index=True)[1]]
    keepers = keepers[~fixed[place[keepers], own[keepers]]]
    chosen = target
    chosen[keepers] = own[keepers]
    # Two moved items of one prefix want the same free code: solve that prefix as a whole.
    _, inverse, counts = np.unique(place * size + chosen, return_inverse=True, return_counts=True)
    for prefix in np.unique(place[counts[inverse] > 1]):
        start, end = np.searchsorted(place, [prefix, prefix + 1])
        part = slice(start, end)
        if optimal and distances[part].size <= _HUNGARIAN_CELLS:
            chosen[part] = _assign_optimally(distances[part], own[part], used[prefix], fixed[prefix])
        else:
            chosen[part] = _assign_greedily(residual[part], codebook, own[part], used[prefix], fixed[prefix])
    return np.asarray(chosen)


def _assign_optimally(distances: DoubleArray, own: IntArray, used: BoolArray, fixed: BoolArray) -> IntArray:
    """int64 [r]: distinct codes for all contested items of a prefix; fewest changes, then least total distance.

    float64 [r, K] distances; bool [K] used and fixed.
    """
    open_codes = ~used
    open_codes[own] = True  # contested ones are to be had, if nobody stays on them
    columns = np.flatnonzero(open_codes & ~fixed)
    cost = distances[:, columns]
    penalty = len(cost) * cost.max() + 1.0
    _, picked = linear_sum_assignment(cost + penalty * (own[:, None] != columns[None, :]))
    return np.asarray(columns[picked], dtype=np.int64)


def _assign_greedily(
    residual: DoubleArray, codebook: FloatArray, own: IntArray, used: BoolArray, fixed: BoolArray
) -> IntArray:
    """int64 [r]: distinct codes for all contested items of a prefix; the closest keeps its code and the others, the
    closest first, take the nearest free one. float64 [r, d] residual, float32 [K, d] codebook, bool [K] used, fixed."""
    own_distance = np.square(residual - codebook[own]).sum(axis=1)
    order = np.argsort(own_distance, kind="stable")
    codes, first = np.unique(own[order], return_index=True)
    keepers = order[first[~fixed[codes]]]
    chosen = np.full(len(own), -1, dtype=np.int64)
    chosen[keepers] = own[keepers]
    is_used = used.copy()
    movers = order[chosen[order] < 0]
    block = max(1, _BLOCK_CELLS // len(codebook))
    for start in range(0, len(movers), block):
        part = movers[start : start + block]
        for row, distances in zip(part, squared_distances(residual[part], codebook), strict=True):
            chosen[row] = np.where(is_used, np.inf, distances).argmin()
            is_used[chosen[row]] = True
    return chosen
