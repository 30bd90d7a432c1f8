"""Ragged integer sequences in one flat array: users' item histories and evaluation cases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_BLOCK = 1 << 22


def blocks(length: int) -> Iterator[slice]:
    """Stretches of a long array that are worked on one after another, so that what is made on the way stays small."""
    return (slice(begin, min(begin + _BLOCK, length)) for begin in range(0, length, _BLOCK))


def blocks_of_runs(values: npt.NDArray[np.integer]) -> Iterator[slice]:
    """`blocks` of an ascending array, of which none divides equal values."""
    begin = 0
    while begin < len(values):
        last = min(begin + _BLOCK, len(values)) - 1
        end = int(np.searchsorted(values, values[last], side="right"))
        yield slice(begin, end)
        begin = end


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """`len(self)` sequences of items; sequence i is `items[offsets[i]:offsets[i + 1]]`, oldest first."""

    users: IntArray
    """int64 [n]: the user index of each sequence."""
    offsets: IntArray
    """int64 [n + 1], starting with 0, never decreasing."""
    items: IntArray
    """int64 [offsets[-1]]: dense item indices."""

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int] | IntArray], users: Sequence[int] | None = None) -> Sequences:
        """Build from Python lists or arrays; users are 0..n-1 when not given."""
        arrays = [np.asarray(values, dtype=np.int64) for values in lists]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(values) for values in arrays], out=offsets[1:])
        return cls(
            users=np.arange(len(arrays)) if users is None else np.asarray(users, dtype=np.int64),
            offsets=offsets,
            items=np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> IntArray:
        return self.items[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[IntArray]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> IntArray:
        """int64 [n]."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: IntArray) -> IntArray:
        """int64 [B]: of the sequences at `rows` (int64 [B]), at the cost of these alone."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def select(self, rows: IntArray) -> Sequences:
        """The sequences at `rows` (int64), in that order."""
        lengths = self.lengths_of(rows)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Sequences(users=self.users[rows], offsets=offsets, items=self.items[flat])

    def apart(self, distance: int) -> tuple[IntArray, IntArray]:
        """Earlier and later items (int64 each) that stand `distance` >= 1 places apart in a sequence and differ."""
        owner = np.repeat(np.arange(len(self)), self.lengths)
        earlier, later = self.items[:-distance], self.items[distance:]
        counted = (owner[:-distance] == owner[distance:]) & (earlier != later)
        return earlier[counted], later[counted]

    def renumber(self, index: IntArray) -> Sequences:
        """Each item i as `index[i]`; items whose index is negative are left out, and no sequence goes."""
        items = index[self.items]
        return Sequences(users=self.users, offsets=self.offsets, items=items).only(items >= 0)

    def only(self, kept: npt.NDArray[np.bool_]) -> Sequences:
        """Without the items that are not `kept`, bool like `items`; no sequence goes."""
        offsets = np.concatenate([[0], np.cumsum(kept)])[self.offsets]
        return Sequences(users=self.users, offsets=offsets, items=self.items[kept])


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Evaluation cases: given `histories[i]`, the user's next item was `targets[i]`."""

    histories: Sequences
    targets: IntArray
    """int64 [n]."""

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: IntArray) -> Examples:
        """The cases at `rows` (int64), in that order."""
        return Examples(histories=self.histories.select(rows), targets=self.targets[rows])

    def renumber(self, index: IntArray) -> Examples:
        """Each item i as `index[i]`; without cases whose target has a negative index, and such items of histories."""
        kept = self.select(np.flatnonzero(index[self.targets] >= 0))
        return Examples(histories=kept.histories.renumber(index), targets=index[kept.targets])
