"""Whether what is recommended today is still like what was recommended at first. Knows no HTTP and no Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray

Bins = npt.NDArray[np.integer[Any]]

NUM_DECILES = 10
WINDOW_S = 3600.0
MIN_SERVED = 1000
"""Fewer items than this say nothing about a distribution: no distance is given then."""


def popularity_deciles(item_counts: IntArray) -> IntArray:
    """The tenth of the catalogue that each item belongs to, 0 the most popular; equal counts by index.

    Args:
        item_counts: int64 [num_items].

    Returns:
        int64 [num_items], values 0 .. 9.
    """
    deciles = np.empty(len(item_counts), dtype=np.int64)
    order = np.argsort(-item_counts, kind="stable")
    deciles[order] = np.arange(len(item_counts)) * NUM_DECILES // max(1, len(item_counts))
    return deciles


def jensen_shannon_distance(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """The square root of the Jensen-Shannon divergence to base 2: 0 for equal distributions, 1 for disjoint ones.

    Lin, "Divergence measures based on the Shannon entropy", 1991; that its root is a metric: Endres and Schindelin,
    2003.

    Args:
        p: counts or weights [num_bins], not all 0.
        q: the same of the other distribution.

    Raises:
        ValueError: a distribution is empty.
    """
    first, second = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if not (first.sum() > 0 and second.sum() > 0):
        raise ValueError("a distribution without weight has no distance to another")
    first, second = first / first.sum(), second / second.sum()
    middle = (first + second) / 2

    def divergence(part: npt.NDArray[np.float64]) -> float:
        some = part > 0
        return float((part[some] * np.log2(part[some] / middle[some])).sum())

    return float(np.sqrt(max(0.0, (divergence(first) + divergence(second)) / 2)))


class ServedDrift:
    """How far the served items of the last one to two hours are from those of the first hour, over a few bins.

    The bins are not the items: with thousands of them two samples of the same distribution lie far apart.

    Args:
        bin_of_item: [num_items], the bin of each item: its popularity decile, the first code of its semantic ID.
        clock: seconds that never go back.
        window_s: length of a window.
    """

    def __init__(
        self, bin_of_item: Bins, clock: Callable[[], float] = time.monotonic, window_s: float = WINDOW_S
    ) -> None:
        self._bins = _small(bin_of_item)
        self._clock = clock
        self._window_s = window_s
        num_bins = int(bin_of_item.max(initial=0)) + 1
        self._reference, self._previous, self._current = (np.zeros(num_bins, dtype=np.int64) for _ in range(3))
        self._is_reference = True
        self._until = clock() + window_s

    def grow(self, bin_of_item: Bins) -> None:
        """There are more items from now on; those that there were keep their bins.

        Args:
            bin_of_item: [K], of the further ones.
        """
        further = max(0, int(bin_of_item.max(initial=0)) + 1 - len(self._current))
        self._bins = np.append(self._bins, _small(bin_of_item))
        self._reference, self._previous, self._current = (
            np.pad(counts, (0, further)) for counts in (self._reference, self._previous, self._current)
        )

    def observe(self, items: Sequence[int]) -> None:
        """Count the items of one list, dense indices."""
        self._roll()
        counts = self._reference if self._is_reference else self._current
        np.add.at(counts, self._bins[np.asarray(items, dtype=np.int64)], 1)

    def distance(self) -> float:
        """The Jensen-Shannon distance; NaN while either side has too few items to tell."""
        self._roll()
        recent = self._previous + self._current
        if min(self._reference.sum(), recent.sum()) < MIN_SERVED:
            return float("nan")
        return jensen_shannon_distance(self._reference, recent)

    def _roll(self) -> None:
        now = self._clock()
        if now < self._until:
            return
        if self._is_reference:
            # An hour without visitors is no reference: it goes on until it can be one.
            self._is_reference = bool(self._reference.sum() < MIN_SERVED)
        else:
            quiet = now >= self._until + self._window_s
            self._previous = np.zeros_like(self._current) if quiet else self._current
            self._current = np.zeros_like(self._current)
        self._until = now + self._window_s


def _small(bins: Bins) -> Bins:
    """The same in the smallest type that holds them: there may be ten million items."""
    return bins.astype(np.min_scalar_type(int(bins.max(initial=0))))
