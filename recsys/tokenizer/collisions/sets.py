"""Uniqueness for codes of parallel codebooks: a colliding item changes the code it is least sure of.

Knows codes and distances only. Codes of parallel codebooks have no order, so there is no prefix to keep: what is kept
is as many codes of an item as can be.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.tokenizer.residual import DoubleArray

# Alternatives looked up at first per item; more are looked up for the few items that need them.
_SHORT_LIST = 32
_BLOCK_CELLS = 1 << 22

Distances = DoubleArray | Callable[[IntArray], DoubleArray]
"""Squared distances of each item to every code of each expert: float [n, M, K], or a function that gives them as
[r, M, K] for int64 [r] rows, for catalogues where the whole array does not fit into memory."""


def resolve_sets(raw_codes: IntArray, distances: Distances, taken: IntArray | None = None) -> IntArray:
    """Unique tuples of parallel codes, near the raw ones.

    Of all items that share a tuple, the one whose cheapest change of ONE code (the increase in squared distance, over
    all experts and codes, to a tuple that nobody has) is the cheapest of all changes moves first; the last item left
    keeps the tuple. An item changes two codes, or more, only when all tuples at one change from its own are taken;
    then it takes the free tuple with the smallest total increase. Exact duplicates are told apart as well. Among equal
    increases the item with the higher row moves.

    Args:
        raw_codes: int64 [n, M], each item's codes, one per expert.
        distances: see `Distances`.
        taken: int64 [m, M], unique tuples of other items; they stay, and none of them is given out.

    Returns:
        int64 [n, M]: rows unlike each other and unlike all rows of `taken`.

    Raises:
        DataError: more items than tuples.
    """
    num_items, experts = raw_codes.shape
    codes = raw_codes.copy()
    if num_items == 0:
        return codes
    lookup = distances if callable(distances) else distances.__getitem__
    size = lookup(np.zeros(1, dtype=np.int64)).shape[2]
    num_taken = 0 if taken is None else len(taken)
    if num_items + num_taken > size**experts:
        raise DataError(
            f"{num_items + num_taken} items do not fit into {size**experts} sets of codes ({experts} codebooks of "
            f"{size}); raise the number of codebooks or tokenizer.codebook_size"
        )
    # A tuple is one Python integer, so that changing a code is one addition and no number of experts overflows.
    strides = [size**expert for expert in range(experts)]
    keys = _keys(codes, strides)
    owners: dict[int, int] = {}
    for key in itertools.chain(keys, () if taken is None else _keys(taken, strides)):
        owners[key] = owners.get(key, 0) + 1
    colliding = np.asarray([row for row, key in enumerate(keys) if owners[key] > 1], dtype=np.int64)

    options = dict(zip(colliding.tolist(), _short_lists(codes, colliding, lookup), strict=True))
    queue: list[tuple[float, int, int]] = []  # increase, minus the row, new key

    def offer(row: int) -> None:
        """Queue the cheapest free tuple of an item."""
        for increase, expert, code in options[row]:
            key = keys[row] + (code - int(codes[row, expert])) * strides[expert]
            if key not in owners:
                heapq.heappush(queue, (increase, -row, key))
                return
        for increase, changed in _several_changes(codes[row], lookup(np.asarray([row]))[0]):
            key = sum(int(code) * stride for code, stride in zip(changed, strides, strict=True))
            if key not in owners:
                heapq.heappush(queue, (increase, -row, key))
                return
        raise AssertionError("there are more tuples than items")

    for row in colliding.tolist():
        offer(row)
    while queue:
        _, minus_row, key = heapq.heappop(queue)
        row = -minus_row
        if owners[keys[row]] == 1:
            continue  # the others have left: this item keeps the tuple
        if key in owners:
            offer(row)
            continue
        owners[keys[row]] -= 1
        keys[row], owners[key] = key, 1
    for row in colliding.tolist():
        codes[row] = [keys[row] // stride % size for stride in strides]
    return codes


def _keys(codes: IntArray, strides: list[int]) -> list[int]:
    """One integer per row, of any size."""
    total: Any = np.zeros(len(codes), dtype=object)
    for column, stride in zip(codes.T, strides, strict=True):
        total = total + column.astype(object) * stride
    return [int(key) for key in total]


def _short_lists(
    codes: IntArray, rows: IntArray, lookup: Callable[[IntArray], DoubleArray]
) -> Iterator[Iterator[tuple[float, int, int]]]:
    """Per row its changes of one code (increase, expert, code), the smallest increase first."""
    block = max(1, _BLOCK_CELLS // max(1, lookup(rows[:1]).size)) if len(rows) else 1
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        increases = _increases(codes[part], lookup(part))
        size = increases.shape[2]
        flat = increases.reshape(len(part), -1)
        shortest = min(_SHORT_LIST, flat.shape[1])
        near = np.argpartition(flat, shortest - 1, axis=1)[:, :shortest]
        near = np.take_along_axis(near, np.take_along_axis(flat, near, axis=1).argsort(axis=1, kind="stable"), axis=1)
        costs = np.take_along_axis(flat, near, axis=1)
        for row, listed, cost in zip(part, near, costs, strict=True):
            yield _changes(int(row), listed, cost, size, codes[row].copy(), lookup)


def _changes(
    row: int,
    listed: IntArray,
    costs: DoubleArray,
    size: int,
    own: IntArray,
    lookup: Callable[[IntArray], DoubleArray],
) -> Iterator[tuple[float, int, int]]:
    for cost, index in zip(costs.tolist(), listed.tolist(), strict=True):
        if cost < math.inf:
            yield cost, index // size, index % size
    flat = _increases(own[None], lookup(np.asarray([row])))[0].ravel()
    seen = set(listed.tolist())
    for index in np.argsort(flat, kind="stable").tolist():
        if index not in seen and flat[index] < math.inf:
            yield float(flat[index]), index // size, index % size


def _increases(codes: IntArray, distances: DoubleArray) -> DoubleArray:
    """float64 [r, M, K]: what changing to each code adds to the squared distance; infinite for the own code."""
    index = codes[:, :, None]
    increases = distances.astype(np.float64) - np.take_along_axis(distances, index, axis=2)
    np.put_along_axis(increases, index, np.inf, axis=2)
    return increases


def _several_changes(own: IntArray, distances: DoubleArray) -> Iterator[tuple[float, IntArray]]:
    """All tuples for one item, int64 [M], by increasing total squared distance: a best-first walk over the experts'
    sorted codes. float [M, K] distances."""
    experts = np.arange(len(own))
    order = distances.argsort(axis=1, kind="stable")
    sorted_distances = np.take_along_axis(distances, order, axis=1).astype(np.float64)
    base = float(distances[experts, own].sum())
    start = (0,) * len(own)
    queue = [(float(sorted_distances[:, 0].sum()), start)]
    seen = {start}
    while queue:
        total, ranks = heapq.heappop(queue)
        yield total - base, order[experts, list(ranks)]
        for expert, rank in enumerate(ranks):
            following = (*ranks[:expert], rank + 1, *ranks[expert + 1 :])
            if rank + 1 < distances.shape[1] and following not in seen:
                seen.add(following)
                step = sorted_distances[expert, rank + 1] - sorted_distances[expert, rank]
                heapq.heappush(queue, (total + float(step), following))
