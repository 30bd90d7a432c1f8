"""How many items that a mask permits come before a place in a trie's order, in the form that is cheapest for the mask.

A mask of few items, or of all but a few, is kept as a list of positions and asked by binary search; one in between as a
table of counts. What is made of a mask that cannot be written to is remembered: filters, and what is removed from a
catalogue, are the same from request to request.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.generator.trie import ItemTrie

_FEW = 16
"""A list pays for at most one of so many items: they are sorted."""
_KEPT_BYTES = 128 << 20
"""Of the remembered masks of one trie, about."""


class MaskCounts(ABC):
    """What a mask permits, in the order of a trie."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory."""

    @abstractmethod
    def before(self, positions: Tensor) -> Tensor:
        """Integers like `positions` (int64 [B, ...], 0 to N): how many permitted items have a lower position."""

    def permits(self, positions: Tensor) -> Tensor:
        """bool like `positions`, int64 [B, ...] from 0 to N - 1."""
        return self.before(positions + 1) > self.before(positions)


@dataclass(frozen=True, eq=False)
class CountTable(MaskCounts):
    """A count for each position."""

    table: Tensor
    """int32 [B, N + 1], or [1, N + 1] for all requests: how many permitted items have a lower position."""

    @property
    def nbytes(self) -> int:
        """See `MaskCounts`."""
        return self.table.nbytes

    def before(self, positions: Tensor) -> Tensor:
        """See `MaskCounts`."""
        if len(self.table) == 1:
            return self.table[0][positions]
        return self.table.gather(1, positions.flatten(1)).view(positions.shape)


@dataclass(frozen=True, eq=False)
class PositionList(MaskCounts):
    """The positions of what a mask permits, or of what it does not."""

    positions: Tensor
    """int64 [C], ascending."""
    are_permitted: bool

    @property
    def nbytes(self) -> int:
        """See `MaskCounts`."""
        return self.positions.nbytes

    def before(self, positions: Tensor) -> Tensor:
        """See `MaskCounts`."""
        listed = torch.searchsorted(self.positions, positions)
        return listed if self.are_permitted else positions - listed


def frozen(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The same mask, not to be written to any more, so that searches remember what they have made of it."""
    mask.flags.writeable = False
    return mask


def count_mask(trie: ItemTrie, mask: npt.NDArray[np.bool_]) -> MaskCounts:
    """Counts of one mask, bool [N], over a trie in the memory of the CPU."""
    if mask.flags.writeable:
        return _counted(trie, mask)
    remembered = _REMEMBERED.get(trie)
    if remembered is None:
        remembered = _REMEMBERED.setdefault(trie, _Remembered())
    found = remembered.find(mask)
    if found is None:
        found = _counted(trie, mask)
        remembered.keep(mask, found)
    return found


def count_table(trie: ItemTrie, masks: npt.NDArray[np.bool_]) -> CountTable:
    """Counts of masks, bool [B, N], on the trie's device."""
    permitted = trie.in_order(torch.tensor(masks, device=trie.items.device))
    table = torch.zeros(len(masks), masks.shape[1] + 1, dtype=torch.int32, device=permitted.device)
    torch.cumsum(permitted, -1, dtype=torch.int32, out=table[:, 1:])
    return CountTable(table)


def _counted(trie: ItemTrie, mask: npt.NDArray[np.bool_]) -> MaskCounts:
    count = int(np.count_nonzero(mask))
    is_few = count * _FEW <= len(mask)
    if not is_few and (len(mask) - count) * _FEW > len(mask):
        return count_table(trie, mask[None])
    items = torch.from_numpy(np.flatnonzero(mask if is_few else ~mask))
    return PositionList(trie.positions[items].sort().values, is_few)


@dataclass
class _Remembered:
    """What was made of masks that were asked for last."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    entries: OrderedDict[int, tuple[weakref.ref[Any], MaskCounts]] = field(default_factory=OrderedDict)

    def find(self, mask: npt.NDArray[np.bool_]) -> MaskCounts | None:
        with self.lock:
            entry = self.entries.get(id(mask))
            # A number is given to another mask once its own is gone.
            if entry is None or entry[0]() is not mask:
                return None
            self.entries.move_to_end(id(mask))
            return entry[1]

    def keep(self, mask: npt.NDArray[np.bool_], counts: MaskCounts) -> None:
        with self.lock:
            self.entries[id(mask)] = (weakref.ref(mask), counts)
            for key in [key for key, (alive, _) in self.entries.items() if alive() is None]:
                del self.entries[key]
            while len(self.entries) > 1 and sum(kept.nbytes for _, kept in self.entries.values()) > _KEPT_BYTES:
                self.entries.popitem(last=False)


# Beside the tries, which know no masks.
_REMEMBERED: weakref.WeakKeyDictionary[ItemTrie, _Remembered] = weakref.WeakKeyDictionary()
