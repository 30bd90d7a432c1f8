"""What stands before a place in the training sequences. A place is an index into all their items. Knows no texts."""

from __future__ import annotations

import numpy as np

from recsys.data import IntArray, Sequences


class Histories:
    """The history before each place, short enough for a prompt, without the item that stands there."""

    def __init__(self, train: Sequences, max_history: int) -> None:
        self._items = train.items
        self._max_history = max_history
        sequence = np.repeat(np.arange(len(train)), train.lengths)
        self._start = train.offsets[sequence]
        self._user = train.users[sequence]

    def before(self, place: int) -> tuple[int, ...]:
        """The latest `max_history` items, oldest first. A target that the user has had before is taken out: it must not
        stand in its own prompt."""
        target = self.target(place)
        return tuple(item for item in self.all_before(place) if item != target)

    def all_before(self, place: int) -> tuple[int, ...]:
        """The latest `max_history` items, oldest first, the target among them where the user has had it before."""
        begin = max(int(self._start[place]), place - self._max_history)
        return tuple(self._items[begin:place].tolist())

    def target(self, place: int) -> int:
        """The item at `place`."""
        return int(self._items[place])

    def user(self, place: int) -> int:
        """Whose sequence it is."""
        return int(self._user[place])


def latest_places(train: Sequences, count: int) -> IntArray:
    """int64, ascending: the last `count` places of each sequence."""
    from_end = np.repeat(train.offsets[1:], train.lengths) - np.arange(len(train.items))
    return np.flatnonzero(from_end <= count)
