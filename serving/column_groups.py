"""The groups of items that a column of the catalogue makes, by name. Knows no requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray
from recsys.generator import Groups


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnGroups:
    """Items with equal texts, or lists with a common entry, in a column."""

    settled: Groups
    """Those of an earlier version of the column."""
    changed: Mapping[int, IntArray] = field(default_factory=dict)
    """By item, the groups that it has come to be in since then; new items are behind the others without gaps."""
    numbers: Mapping[str, int]
    """Of each group, by the text; a group may have lost all its items."""

    @classmethod
    def of(cls, values: pl.Series) -> ColumnGroups:
        """The groups of a column; an entry that repeats in a list counts once."""
        rows, texts = _entries(values)
        names = texts.unique().sort()
        ids = texts.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
        # A row's first entry of a group stays, in its order.
        pairs = rows * max(1, len(names)) + ids
        if isinstance(values.dtype, pl.List):
            kept = np.sort(np.unique(pairs, return_index=True)[1])
            rows, ids = rows[kept], ids[kept]
        return cls(
            settled=_groups(np.bincount(rows, minlength=len(values)), ids, len(names)),
            numbers={name: number for number, name in enumerate(names.to_list())},
        )

    def with_rows(self, values: pl.Series, at: IntArray) -> ColumnGroups:
        """The groups after some items have got other values, and others were appended; these stay as they are.

        Nothing of a large catalogue is copied until `groups` is asked for.

        Args:
            values: of the column.
            at: int64, ascending, the items that have them; those from N on are new.
        """
        numbers = dict(self.numbers)
        changed = {
            item: np.array([numbers.setdefault(text, len(numbers)) for text in dict.fromkeys(_texts(value))], np.int64)
            for item, value in zip(at.tolist(), values.to_list(), strict=True)
        }
        if self.is_ready:
            return ColumnGroups(settled=self.groups, changed=changed, numbers=numbers)
        return ColumnGroups(settled=self.settled, changed={**self.changed, **changed}, numbers=numbers)

    @property
    def is_ready(self) -> bool:
        """Whether `groups` costs nothing."""
        return not self.changed or "groups" in self.__dict__

    @cached_property
    def groups(self) -> Groups:
        """What caps count; made at the first look, of ten million items in half a second."""
        if not self.changed:
            return self.settled
        old, count = self.settled, self.settled.num_items
        at = np.array(sorted(self.changed), dtype=np.int64)
        entries = [self.changed[item] for item in at.tolist()]
        sizes = np.pad(np.diff(old.offsets), (0, int((at >= count).sum())))
        sizes[at] = [len(row) for row in entries]
        begins = old.offsets[np.minimum(at, count)]
        ends = old.offsets[np.minimum(at + 1, count)]
        parts: list[IntArray] = []
        place = 0
        for begin, end, row in zip(begins.tolist(), ends.tolist(), entries, strict=True):
            parts += [old.ids[place:begin], row]
            place = end
        return _groups(sizes, np.concatenate([*parts, old.ids[place:]]), len(self.numbers))

    def items_of(self, name: str) -> IntArray:
        """int64, ascending: the items of a group; none for a text that makes no group."""
        number = self.numbers.get(name, -1)
        entries = np.flatnonzero(self.settled.ids == number)
        items = np.searchsorted(self.settled.offsets, entries, side="right") - 1
        if not self.changed:
            return items
        now = np.array([item for item, groups in self.changed.items() if number in groups], dtype=np.int64)
        return np.union1d(items[~np.isin(items, list(self.changed))], now)

    def sizes(self, among: np.ndarray | None) -> dict[str, int]:
        """How many items each group has, of those that are `among` (bool [N]; None: all); without groups of none."""
        ids = self.groups.ids
        if among is not None:
            ids = ids[np.repeat(among, np.diff(self.groups.offsets))]
        counts = np.bincount(ids, minlength=self.groups.num_groups).tolist()
        return {name: counts[number] for name, number in self.numbers.items() if counts[number]}


def _groups(sizes: IntArray, ids: IntArray, num_groups: int) -> Groups:
    return Groups(offsets=np.append(0, np.cumsum(sizes)).astype(np.int64), ids=ids, num_groups=num_groups)


def _entries(values: pl.Series) -> tuple[IntArray, pl.Series]:
    """The row and the text of each value, or of each entry of a list."""
    table = pl.DataFrame({"row": pl.int_range(len(values), eager=True), "text": values})
    if isinstance(values.dtype, pl.List):
        table = table.explode("text")
    table = table.drop_nulls()
    return table["row"].to_numpy().astype(np.int64), table["text"].cast(pl.String)


def _texts(value: str | list[str | None] | None) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if text is not None]
