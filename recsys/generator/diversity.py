"""Caps on how much of a list may be alike, inside the search: items of full groups are denied, and it goes on.

A capped list is what one gets by walking all permitted items in their order and skipping those of a full group, until
there are k. Groups that are full stay full, so the walk needs no more than the next best items outside of them: a
search of k items, its list walked, what was seen and what is full denied, and another search. Each one adds an item
at least, so that the list has k items whenever that walk has.

Shapes: R requests, P items that are known, G groups of an item at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.generator.constraints import Cap, Constraints
from recsys.generator.decoder import Found


class ListSearch(Protocol):
    """A search for k items of some requests of a batch."""

    def __call__(self, rows: Tensor, constraints: Constraints, /) -> Found:
        """The lists of the requests at `rows` (int64 [R]) under their `constraints`, caps aside."""


def capped(search: ListSearch, constraints: Constraints, k: int, batch_size: int) -> Found:
    """Lists of k items that keep the caps of `constraints`; certified if every search for them was."""
    rows = torch.arange(batch_size)
    known = search(rows, constraints)
    listed = walk_in_order(known.items.numpy(), constraints.caps, k)
    exhausted = known.items[:, -1].numpy() < 0
    while True:
        open_rows = np.flatnonzero((listed.sum(axis=1) < k) & ~exhausted)
        if len(open_rows) == 0:
            break
        items = known.items.numpy()[open_rows]
        seen = [row[row >= 0] for row in items]
        full = [
            items_of_full_groups(row[taken], constraints.caps)
            for row, taken in zip(items, listed[open_rows], strict=True)
        ]
        denied = [np.concatenate(pair) for pair in zip(seen, full, strict=True)]
        rows = torch.from_numpy(open_rows)
        found = search(rows, constraints.select(open_rows).deny_also(denied))
        exhausted[open_rows] = found.items[:, -1].numpy() < 0
        known = _add(known, rows, found)
        listed = walk_in_order(known.items.numpy(), constraints.caps, k)
    # The listed ones first, in their order; what stands behind them is not part of the list.
    order = torch.from_numpy(np.argsort(~listed, axis=1, kind="stable")[:, :k])
    none = ~torch.from_numpy(listed).gather(1, order)
    return Found(
        items=known.items.gather(1, order).masked_fill(none, -1),
        scores=known.scores.gather(1, order).masked_fill(none, -torch.inf),
        ranks=known.ranks.gather(1, order).masked_fill(none, -torch.inf),
        places=known.places.gather(1, order),
        bound=known.bound,
        bound_place=known.bound_place,
        certified=known.certified,
    )


def walk_in_order(items: IntArray, caps: Sequence[Cap], k: int) -> npt.NDArray[np.bool_]:
    """bool [R, P]: which of `items` (int64 [R, P], best first, -1 for none) a list of k takes; see the module."""
    taken = np.zeros(items.shape, dtype=bool)
    for row, listed in zip(taken, items, strict=True):
        exists = listed >= 0
        row[:] = exists & np.isin(listed, walk_one(listed[exists], caps, k))
    return taken


def walk_one(order: IntArray, caps: Sequence[Cap], k: int) -> IntArray:
    """int64 [at most k]: what a list of k takes of one request's items (int64 [P], best first).

    Args:
        order: the items.
        caps: of the list.
        k: how many it takes.
    """
    counts = [np.zeros(cap.groups.num_groups, dtype=np.int64) for cap in caps]
    taken: list[int] = []
    left = order
    for cap, count in zip(caps, counts, strict=True):
        mine = cap.groups.of(cap.given)
        np.add.at(count, mine[mine >= 0], 1)
        left = _outside(left, cap, np.flatnonzero(count >= cap.most))
    while len(taken) < k and len(left):
        item = int(left[0])
        taken.append(item)
        left = left[1:]
        for cap, count in zip(caps, counts, strict=True):
            mine = cap.groups.ids[cap.groups.offsets[item] : cap.groups.offsets[item + 1]]
            count[mine] += 1
            # A group fills up at most once an item taken; all of its items go at once, however many there are.
            left = _outside(left, cap, mine[count[mine] == cap.most])
    return np.array(taken, dtype=np.int64)


def _outside(items: IntArray, cap: Cap, full: IntArray) -> IntArray:
    """Those of `items` that are in none of the groups `full`."""
    if not len(full):
        return items
    denied = np.zeros(cap.groups.num_items, dtype=bool)
    denied[cap.groups.items_of(full)] = True
    return items[~denied[items]]


def items_of_full_groups(listed: IntArray, caps: Sequence[Cap]) -> IntArray:
    """int64: items in a group of which `listed` (int64 [P]), with what is given, has as many as it may."""
    found = [np.zeros(0, dtype=np.int64)]
    for cap in caps:
        groups, counts = np.unique(cap.groups.of(np.concatenate([listed, cap.given])), return_counts=True)
        found.append(cap.groups.items_of(groups[(groups >= 0) & (counts >= cap.most)]))
    return np.concatenate(found)


def _add(known: Found, rows: Tensor, new: Found) -> Found:
    """`known` with more items at `rows`, in the order of their ranks; certified where both are."""
    k = new.items.shape[1]
    wider = Found(
        items=torch.nn.functional.pad(known.items, (0, k), value=-1),
        scores=torch.nn.functional.pad(known.scores, (0, k), value=-torch.inf),
        ranks=torch.nn.functional.pad(known.ranks, (0, k), value=-torch.inf),
        places=torch.nn.functional.pad(known.places, (0, k), value=torch.iinfo(torch.int64).max),
        bound=known.bound.index_copy(0, rows, new.bound),
        bound_place=known.bound_place.index_copy(0, rows, new.bound_place),
        certified=known.certified.index_copy(0, rows, known.certified[rows] & new.certified),
    )
    for table, added in (
        (wider.items, new.items),
        (wider.scores, new.scores),
        (wider.ranks, new.ranks),
        (wider.places, new.places),
    ):
        table[rows, -k:] = added
    order = wider.places.argsort(dim=1, stable=True)
    order = order.gather(1, wider.ranks.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return Found(
        items=wider.items.gather(1, order),
        scores=wider.scores.gather(1, order),
        ranks=wider.ranks.gather(1, order),
        places=wider.places.gather(1, order),
        bound=wider.bound,
        bound_place=wider.bound_place,
        certified=wider.certified,
    )
