"""The groups of items that a column of the catalogue makes, by name. Knows no requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray
from recsys.generator import Groups


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnGroups:
    """Items with equal texts, or lists with a common entry, in a column."""

    groups: Groups
    """What caps count."""
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
            groups=_groups(np.bincount(rows, minlength=len(values)), ids, len(names)),
            numbers={name: number for number, name in enumerate(names.to_list())},
        )

    def with_rows(self, values: pl.Series, at: IntArray) -> ColumnGroups:
        """The groups after some items have got other values, and others were appended; these stay as they are.

        Args:
            values: of the column.
            at: int64, ascending, the items that have them; those from N on are new.
        """
        numbers = dict(self.numbers)
        entries = [
            [numbers.setdefault(text, len(numbers)) for text in dict.fromkeys(_texts(value))]
            for value in values.to_list()
        ]
        old, count = self.groups, self.groups.num_items
        sizes = np.pad(np.diff(old.offsets), (0, int((at >= count).sum())))
        sizes[at] = [len(row) for row in entries]
        begins = old.offsets[np.minimum(at, count)]
        ends = old.offsets[np.minimum(at + 1, count)]
        parts: list[IntArray] = []
        place = 0
        for begin, end, row in zip(begins.tolist(), ends.tolist(), entries, strict=True):
            parts += [old.ids[place:begin], np.array(row, dtype=np.int64)]
            place = end
        return ColumnGroups(
            groups=_groups(sizes, np.concatenate([*parts, old.ids[place:]]), len(numbers)), numbers=numbers
        )

    def items_of(self, name: str) -> IntArray:
        """int64, ascending: the items of a group; none for a text that makes no group."""
        number = self.numbers.get(name, -1)
        entries = np.flatnonzero(self.groups.ids == number)
        return np.searchsorted(self.groups.offsets, entries, side="right") - 1

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
