"""Lists that are read entry by entry: of what was, and of what has changed since. Nothing is copied."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class Entries(Sequence[T], Generic[T]):
    """A list whose entries are made when they are asked for."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The entry at a place, 0 to len - 1."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return list(map(self.at, places)) if isinstance(places, range) else self.at(places)


class Grown(Entries[T]):
    """A list of which some entries are others now, with further ones behind it.

    Args:
        first: what it was; not to be changed any more.
        changed: by place, what stands there now; the further ones without gaps.
    """

    def __init__(self, first: Sequence[T], changed: Mapping[int, T]) -> None:
        self._first: Sequence[T] = first._first if isinstance(first, Grown) else first
        self._changed: Mapping[int, T] = {**(first._changed if isinstance(first, Grown) else {}), **changed}
        self._length = max(len(first), max(changed, default=-1) + 1)

    def __len__(self) -> int:
        return self._length

    def at(self, place: int) -> T:
        """See `Entries`."""
        return self._changed[place] if place in self._changed else self._first[place]
