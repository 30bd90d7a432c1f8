"""Groups of items, any number an item: categories, brands, prefixes of semantic IDs. Knows no lists and no scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The groups of N items, ragged.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    offsets: IntArray
    """int64 [N + 1], starting with 0, never decreasing."""
    ids: IntArray
    """int64 [offsets[-1]]: item i is in groups ids[offsets[i] : offsets[i + 1]], each once."""
    num_groups: int
    """G: ids lie in 0..G - 1."""

    def __post_init__(self) -> None:
        fits = len(self.offsets) > 0 and self.offsets[0] == 0 and self.offsets[-1] == len(self.ids)
        if not fits or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"groups: offsets must rise from 0 to the number of ids, {len(self.ids)}")
        if len(self.ids) and not 0 <= self.ids.min() <= self.ids.max() < self.num_groups:
            raise ValueError(f"groups: ids must lie in 0..{self.num_groups - 1}")

    @classmethod
    def from_labels(cls, labels: Iterable[Iterable[Hashable]]) -> Groups:
        """Of one collection of labels an item, for example its categories; a label that repeats counts once."""
        number: dict[Hashable, int] = {}
        rows = [[number.setdefault(label, len(number)) for label in dict.fromkeys(row)] for row in labels]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        ids = np.fromiter((group for row in rows for group in row), dtype=np.int64, count=int(offsets[-1]))
        return cls(offsets=offsets, ids=ids, num_groups=len(number))

    @classmethod
    def from_prefixes(cls, codes: IntArray, length: int) -> Groups:
        """Of items (codes int64 [N, L]) that share the first `length` codes of their semantic IDs."""
        if not 1 <= length <= codes.shape[1]:
            raise ValueError(f"length must lie in 1..{codes.shape[1]}, got {length}")
        prefixes, ids = np.unique(codes[:, :length], axis=0, return_inverse=True)
        return cls(offsets=np.arange(len(codes) + 1), ids=ids.reshape(-1).astype(np.int64), num_groups=len(prefixes))

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @cached_property
    def most_per_item(self) -> int:
        """The most groups that an item is in."""
        return int(np.diff(self.offsets).max(initial=0))

    def of(self, items: IntArray) -> IntArray:
        """int64 [..., most_per_item]: the groups of `items` (int64 [...]), padded with -1; none for item -1."""
        places = self.offsets[:-1][items][..., None] + np.arange(self.most_per_item)
        inside = (places < self.offsets[1:][items][..., None]) & (items >= 0)[..., None]
        if not len(self.ids):
            return np.full(places.shape, -1, dtype=np.int64)
        return np.where(inside, self.ids[np.minimum(places, len(self.ids) - 1)], -1)

    def items_of(self, groups: IntArray) -> IntArray:
        """int64: the items in any of `groups` (int64), possibly with repeats."""
        owners, starts = self._inverse
        pieces = [owners[starts[group] : starts[group + 1]] for group in groups]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def histogram(self, owners: IntArray, num_owners: int) -> npt.NDArray[np.float32]:
        """float32 [num_owners, G]: the distribution of the groups of each owner's items; an item weighs 1 in all.

        Owners of no item in any group have zeros.

        Args:
            owners: int64 [N], the one owner of each item (for example its prefix).
            num_owners: how many there are.
        """
        counts = np.diff(self.offsets)
        table = np.zeros((num_owners, self.num_groups), dtype=np.float32)
        np.add.at(table, (np.repeat(owners, counts), self.ids), np.repeat(1.0 / np.maximum(counts, 1), counts))
        table /= np.maximum(table.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return table

    @cached_property
    def _inverse(self) -> tuple[IntArray, IntArray]:
        owners = np.repeat(np.arange(self.num_items), np.diff(self.offsets))
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.ids, minlength=self.num_groups))])
        return owners[np.argsort(self.ids, kind="stable")], starts
