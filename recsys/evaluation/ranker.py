"""Running a ranker over evaluation cases, and refusing lists that would make the numbers a lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.progress import progress_bar

Ranker: TypeAlias = Callable[[Sequences, int], IntArray]
"""Histories and k to item indices int64 [B, k], best first, unique in a row, -1 = no more items."""


def rank_cases(
    name: str, ranker: Ranker, cases: Examples, k: int, *, num_items: int, mask_seen: bool, batch_size: int
) -> IntArray:
    """int64 [n, k]: the ranker's lists for all cases, in batches, with progress.

    Raises:
        ValueError: a list has the wrong shape, an unknown item, an item twice, or, with `mask_seen`, a seen item.
    """
    batches = []
    with progress_bar(f"Ranking with {name}", len(cases)) as advance:
        for begin in range(0, len(cases), batch_size):
            histories = cases.histories.select(np.arange(begin, min(begin + batch_size, len(cases))))
            lists = ranker(histories, k)
            _check(name, lists, histories, k, num_items=num_items, mask_seen=mask_seen)
            batches.append(lists)
            advance(len(histories), "")
    return np.concatenate(batches) if batches else np.zeros((0, k), dtype=np.int64)


def _check(name: str, lists: IntArray, histories: Sequences, k: int, *, num_items: int, mask_seen: bool) -> None:
    if lists.shape != (len(histories), k):
        raise ValueError(f"{name} returned lists of shape {lists.shape} for {len(histories)} histories and k={k}")
    if lists.size and (lists.min() < -1 or lists.max() >= num_items):
        raise ValueError(f"{name} returned items outside -1..{num_items - 1}: {lists.min()}..{lists.max()}")
    ordered = np.sort(lists, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise ValueError(f"{name} returned an item twice in {repeated.sum()} of {len(lists)} lists")
    if mask_seen:
        # One number for each (row, item) pair; -1 falls outside of all rows' ranges.
        rows = np.repeat(np.arange(len(histories)), histories.lengths)
        seen = rows * num_items + histories.items
        shown = np.where(lists >= 0, np.arange(len(lists))[:, None] * num_items + lists, -1)
        offenders = np.isin(shown, seen).any(axis=1)
        if offenders.any():
            raise ValueError(
                f"{name} recommended items of the user's own history in {offenders.sum()} of {len(lists)} lists, "
                "but the protocol says that seen items are masked; mask them, or evaluate with mask_seen=false"
            )
