"""A list that grows without being copied: what it was, and what has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class Grown(Sequence[T], Generic[T]):
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

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        place = range(self._length)[index]
        return self._changed[place] if place in self._changed else self._first[place]
