"""What the rules of requests need of one version of the catalogue. Knows no model, no users and no HTTP.

Made once per version, and shared by all threads: the groups that caps count, and for each filter the items that it
permits, kept as bitmaps.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import TypeAdapter

from recsys.data import Catalog
from recsys.data.sequences import IntArray
from recsys.errors import ConfigError
from recsys.generator import Groups
from recsys.generator.filters import FilterError, FilterTable, Node, Place, compiled
from recsys.generator.rules import mask

BoolArray = npt.NDArray[np.bool_]

CATEGORIES = "categories"
_CACHE_BYTES = 64 << 20
_LEAST_CACHED = 16
_FILTER: TypeAdapter[Any] = TypeAdapter(Node)


class RuleError(ValueError):
    """A rule of a request does not fit the catalogue.

    Args:
        message: one line, with what there is.
        place: of the offending part within the request.
    """

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


class CatalogRules:
    """The catalogue, as rules see it.

    Args:
        catalog: all items.
        listed: bool [N], those that are not removed: no list has others. None: all.
        rankable: bool [N], those of them that the generator can score. None: all.
    """

    def __init__(self, catalog: Catalog, listed: BoolArray | None = None, rankable: BoolArray | None = None) -> None:
        self.listed = listed
        self.rankable = rankable
        self._frame = catalog.frame
        self._table = FilterTable(catalog.frame)
        self._mutex = threading.Lock()
        self._bitmaps: OrderedDict[str, BoolArray] = OrderedDict()
        self._most_bitmaps = max(_LEAST_CACHED, _CACHE_BYTES // max(1, catalog.num_items))
        self.categories_of_items: list[list[str]] = catalog.frame[CATEGORIES].list.drop_nulls().to_list()
        """By dense index."""
        self._groups = {CATEGORIES: groups_of(catalog.frame, CATEGORIES)}
        members = catalog.frame.with_row_index("index").select("index", CATEGORIES)
        if listed is not None:
            members = members.filter(listed)
        members = members.explode(CATEGORIES)
        self._items_of_category: dict[str, IntArray] = {
            category: group["index"].to_numpy().astype(np.int64)
            for (category,), group in members.drop_nulls().group_by(CATEGORIES)
        }
        self.categories = sorted(
            ((category, len(items)) for category, items in self._items_of_category.items()),
            key=lambda entry: (-entry[1], entry[0]),
        )
        """Categories with their number of listed items, largest first."""

    def in_categories(self, categories: Sequence[str]) -> BoolArray:
        """bool [N]: items with at least one of these.

        Raises:
            RuleError: no listed item has that category.
        """
        allow = np.zeros(self._frame.height, dtype=bool)
        for category in categories:
            if category not in self._items_of_category:
                raise RuleError(f"no item has the category {category!r}; see /v1/categories", (CATEGORIES,))
            allow[self._items_of_category[category]] = True
        return allow

    def permitted(self, node: Node, place: Place = ("filter",)) -> BoolArray:
        """bool [N], not to be written to: items for which a filter holds.

        The first time it is asked about the whole catalogue, which is a matter for a thread; see `has_ready`.

        Args:
            node: a filter without names.
            place: of it in the request.

        Raises:
            RuleError: it does not fit the catalogue.
        """
        key = filter_key(node)
        with self._mutex:
            if key in self._bitmaps:
                self._bitmaps.move_to_end(key)
                return self._bitmaps[key]
        try:
            found = mask(self._frame, [compiled(node, self._table, place)])
        except FilterError as error:
            raise RuleError(str(error), error.place) from error
        with self._mutex:
            self._bitmaps[key] = found
            if len(self._bitmaps) > self._most_bitmaps:
                self._bitmaps.popitem(last=False)
        return found

    def groups(self, column: str, place: Place = ()) -> Groups:
        """The groups of items that a column makes: equal texts, or lists with a common entry.

        Args:
            column: of the catalogue.
            place: of its name in the request.

        Raises:
            RuleError: there is no such column.
        """
        with self._mutex:
            if column in self._groups:
                return self._groups[column]
        if column not in self._frame.columns:
            raise RuleError(f"there is no column {column!r}; there are: {', '.join(self._frame.columns)}", place)
        groups = groups_of(self._frame, column)
        with self._mutex:
            return self._groups.setdefault(column, groups)

    def has_ready(self, nodes: Sequence[Node], columns: Sequence[str]) -> bool:
        """Whether these filters, and the groups of these columns, were asked for before and cost next to nothing."""
        with self._mutex:
            return all(filter_key(node) in self._bitmaps for node in nodes) and set(columns) <= self._groups.keys()

    def check(self, named: Mapping[str, Node]) -> None:
        """Refuse named filters that do not fit the catalogue.

        Raises:
            ConfigError: one of them does not.
        """
        for name, node in named.items():
            try:
                self.permitted(node, ("filters", name))
            except RuleError as error:
                raise ConfigError(f"{'.'.join(map(str, error.place))}: {error}") from error


def groups_of(items: pl.DataFrame, column: str) -> Groups:
    """The groups that the values of a column make; an entry that repeats in a list counts once."""
    values = items.with_row_index("row").select("row", pl.col(column).alias("value"))
    if isinstance(values.schema["value"], pl.List):
        values = values.explode("value").unique(maintain_order=True)
    values = values.drop_nulls()
    counts = np.bincount(values["row"].to_numpy(), minlength=items.height)
    ids = values["value"].rank("dense").to_numpy().astype(np.int64) - 1
    return Groups(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=ids,
        num_groups=int(ids.max(initial=-1)) + 1,
    )


def filter_key(node: Node) -> str:
    """Equal for equal filters: its JSON, whose keys are always in the same order."""
    return _FILTER.dump_json(node, by_alias=True).decode()
