"""The catalogue: which items exist and what is known about them. Knows nothing about users or events."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.columns import Column, RowsByText
from recsys.data.grown import Grown
from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_path

_REQUIRED = {"item_id": pl.String(), "title": pl.String(), "categories": pl.List(pl.String())}
_TEXT_DTYPES = (pl.String(), pl.List(pl.String()))
_LISTED_UP_TO = 500_000
"""Items up to which ids and titles are lists, and a dictionary finds them: 240 bytes an item, in every process."""
_MOST_PIECES, _ROWS_A_PIECE = 64, 4096
"""Pieces of a table at most, and rows for each further one: every piece costs something whenever the table is read, and
a table of ten million rows a second to be made whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """All items. An item's row number is its dense index, 0 to `num_items - 1`.

    Raises:
        DataError: the frame breaks the schema described at `frame`.
    """

    frame: pl.DataFrame
    """`item_id` (String, unique, no nulls), `title` (String, null where unknown), `categories` (List[String],
    empty where unknown), then any further text columns of the source (String or List[String])."""

    def __post_init__(self) -> None:
        schema = self.frame.schema
        for column, required in _REQUIRED.items():
            if schema.get(column) != required:
                raise DataError(f"catalogue: column {column!r} must be {required}, found {schema.get(column)}")
        for column, dtype in schema.items():
            if dtype not in _TEXT_DTYPES:
                raise DataError(f"catalogue: column {column!r} must be text or a list of text, found {dtype}")
        ids = self.frame["item_id"]
        if ids.null_count():
            raise DataError(f"catalogue: {ids.null_count()} of {len(ids)} items have no item_id")
        if ids.n_unique() != len(ids):
            repeated = ids.filter(ids.is_duplicated())
            examples = ", ".join(map(repr, repeated.unique(maintain_order=True).head(3)))
            raise DataError(
                f"catalogue: {len(repeated)} of {len(ids)} rows share an item_id with another row, e.g. "
                f"{examples}; keep one row an item"
            )

    def __len__(self) -> int:
        return self.frame.height

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return self.frame.height

    @cached_property
    def item_ids(self) -> Sequence[str]:
        """The source's own ids, by dense index."""
        values = self.frame["item_id"]
        return values.to_list() if len(values) <= _LISTED_UP_TO else Column(values, str)

    @cached_property
    def titles(self) -> Sequence[str | None]:
        """Titles by dense index; None where the source has none."""
        values = self.frame["title"]
        return values.to_list() if len(values) <= _LISTED_UP_TO else Column(values, lambda title: title)

    @cached_property
    def _index(self) -> Mapping[str, int] | RowsByText:
        if self.num_items > _LISTED_UP_TO:
            return RowsByText(self.frame["item_id"])
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def _further(self) -> Mapping[str, int]:
        """What `_index` lacks, which all catalogues share that were made from one by `with_rows`."""
        return {}

    @cached_property
    def _stamps(self) -> Mapping[str, object]:
        """By column, what is handed on by `with_rows` as long as the column stays the same."""
        return {name: object() for name in self.frame.columns}

    def index_of(self, ids: Sequence[str]) -> IntArray:
        """int64 [len(ids)]: dense indices of the source's ids, -1 for an id that is not in the catalogue."""
        index, further = self._index, self._further
        if not isinstance(index, RowsByText):
            found = (index[one] if one in index else further.get(one, -1) for one in ids)
            return np.fromiter(found, dtype=np.int64, count=len(ids))
        rows = index.find(ids)
        for place in np.flatnonzero(rows < 0).tolist() if further else ():
            rows[place] = further.get(ids[place], -1)
        return rows

    def prepare(self) -> None:
        """Make now what a first look-up would wait for: the tables of ids and titles, for a second or two."""
        _ = self._index, self.titles

    def find(self, ids: pl.Series) -> IntArray:
        """`index_of` a column of ids, String without nulls, by one pass over the catalogue: it keeps no table of all
        items in memory, which for ten million of them is more than their texts."""
        wanted = ids.rename("item_id").to_frame()
        items = self.frame.lazy().select("item_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("item"))
        known = items.join(wanted.unique().lazy(), on="item_id", how="semi").collect()
        found = wanted.join(known, on="item_id", how="left", maintain_order="left")
        return found["item"].fill_null(-1).to_numpy()

    def with_rows(self, rows: pl.DataFrame, at: IntArray) -> Catalog:
        """This catalogue with some items changed and others appended; it stays as it is itself.

        What is not touched is shared: the cost is that of the rows, and of those that were changed before.

        Args:
            rows: of the same columns.
            at: int64, ascending, the dense index of each row: of the item that it replaces, whose id it has, or the
                next ones after the last.

        Raises:
            DataError: the rows do not fit, or an appended id is there already.
        """
        count, old = self.num_items, int(np.searchsorted(at, self.num_items))
        kept, new = rows["item_id"][:old].to_list(), rows["item_id"][old:].to_list()
        if (np.diff(at) <= 0).any() or not np.array_equal(at[old:], np.arange(count, count + len(new))):
            raise DataError("catalogue: rows must be in the order of their indices, and the new ones without gaps")
        if rows.schema != self.frame.schema or not np.array_equal(self.index_of(kept), at[:old]):
            raise DataError("catalogue: a row needs the columns of the catalogue, and the id of the item it replaces")
        if (self.index_of(new) >= 0).any() or len(set(new)) < len(new):
            raise DataError("catalogue: an item that is appended has an id that is there already; keep one row an item")
        twin = copy.copy(self)
        before = self.frame[at[:old]]
        same = [name for name in rows.columns if not new and before[name].equals(rows[name][:old], null_equal=True)]
        places = at.tolist()
        named = {} if "title" in same else dict(zip(places, rows["title"], strict=True))
        twin.__dict__.update(
            frame=with_rows(self.frame, rows, at),
            item_ids=Grown(self.item_ids, dict(zip(places[old:], new, strict=True))) if new else self.item_ids,
            titles=Grown(self.titles, named) if named else self.titles,
            _index=self._index,
            _further={**self._further, **{item_id: count + place for place, item_id in enumerate(new)}},
            _stamps={name: self._stamps[name] if name in same else object() for name in rows.columns},
        )
        return twin

    def shares(self, other: Catalog, columns: Iterable[str]) -> bool:
        """Whether these columns are the same in a catalogue that was made from this one, or this from it, by
        `with_rows`. Of others it knows nothing, and says no."""
        return all(self._stamps.get(name) is other._stamps.get(name) for name in columns)

    def save(self, path: Path) -> None:
        """Write one Parquet file, whole or not at all."""
        with atomic_path(path) as temporary:
            self.frame.write_parquet(temporary)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read what `save` wrote. Raises ArtifactError when the file is missing or damaged."""
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"cannot read the catalogue {path}: {error}") from error
        return cls(frame=frame)


def with_rows(frame: pl.DataFrame, rows: pl.DataFrame, at: IntArray) -> pl.DataFrame:
    """A table with some rows replaced and others appended; what is between them is shared, not copied.

    Args:
        frame: the table, which stays as it is.
        rows: of the same columns.
        at: int64, ascending: where each row belongs; those at or behind the end of the table are appended.
    """
    old = int(np.searchsorted(at, frame.height))
    begins = [0, *(at[:old] + 1).tolist()]
    ends = [*at[:old].tolist(), frame.height]
    parts: list[pl.DataFrame] = []
    for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        parts += [frame[begin:end], rows[place : place + 1] if place < old else rows[old:]]
    whole = pl.concat([part for part in parts if part.height] or [frame], rechunk=False)
    return whole.rechunk() if whole.n_chunks() > max(_MOST_PIECES, whole.height // _ROWS_A_PIECE) else whole
