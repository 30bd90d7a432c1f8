"""What the rules of requests need of one version of the catalogue. Knows no model, no users and no HTTP.

Made once per version, and shared by all threads: the groups that caps count, and for each filter the items that it
permits, kept as bitmaps.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from operator import and_
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
from recsys.generator.mask_counts import frozen
from recsys.generator.rules import mask
from serving.column_groups import ColumnGroups

BoolArray = npt.NDArray[np.bool_]

CATEGORIES = "categories"
_CACHE_BYTES = 64 << 20
_LEAST_CACHED = 16
_NODE_BYTES = 8
"""What a filter takes in memory for each letter of its key, about."""
_UPDATED = 32
"""Filters that a newer version of the catalogue has ready, at most: each takes a look at the rows that are new."""
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
        self._bitmaps: OrderedDict[str, tuple[Node, BoolArray]] = OrderedDict()
        self._combined: OrderedDict[tuple[tuple[str, ...], str | None], BoolArray] = OrderedDict()
        self._cached_bytes = 0
        self._groups = {CATEGORIES: ColumnGroups.of(catalog.frame[CATEGORIES])}

    def over(
        self,
        catalog: Catalog,
        rows: pl.DataFrame,
        at: IntArray,
        listed: BoolArray | None,
        rankable: BoolArray | None,
    ) -> CatalogRules:
        """The rules of a newer version of the catalogue; these stay as they are.

        Groups that were asked for are kept up to date, and the filters that were asked for last.

        Args:
            catalog: all items, as they are now.
            rows: those that have changed or are new.
            at: int64, ascending, their dense indices.
            listed: bool [N'], as in the constructor.
            rankable: bool [N'], likewise.
        """
        twin = copy.copy(self)
        twin.listed, twin.rankable = listed, rankable
        twin.__dict__.pop("categories", None)
        twin._mutex = threading.Lock()
        with self._mutex:
            twin._bitmaps, twin._groups = self._bitmaps.copy(), self._groups.copy()
            twin._cached_bytes = self._cached_bytes
            twin._combined = OrderedDict()
        if not len(at):
            return twin
        twin._frame = catalog.frame
        twin._table = self._table.with_rows(catalog.frame, rows, at)
        twin._groups = {column: groups.with_rows(rows[column], at) for column, groups in twin._groups.items()}
        table = FilterTable(rows, twin._table)
        known = list(twin._bitmaps.items())[-_UPDATED:]
        twin._bitmaps, twin._cached_bytes = OrderedDict(), 0
        for key, (node, bitmap) in known:
            try:
                changed = mask(rows, [compiled(node, table)])
            except FilterError:  # the last number of a column is gone, say: who asks is told
                continue
            bitmap = np.pad(bitmap, (0, catalog.num_items - len(bitmap)))
            bitmap[at] = changed
            twin._keep(key, node, bitmap)
        return twin

    @cached_property
    def categories(self) -> list[tuple[str, int]]:
        """Categories with their number of listed items, largest first."""
        return sorted(self._groups[CATEGORIES].sizes(self.listed).items(), key=lambda entry: (-entry[1], entry[0]))

    def categories_of(self, item: int) -> list[str]:
        """The categories of an item (dense index)."""
        return [category for category in self._frame.item(item, CATEGORIES) if category is not None]

    def in_categories(self, categories: Sequence[str]) -> BoolArray:
        """bool [N]: items with at least one of these.

        Raises:
            RuleError: no listed item has that category.
        """
        allow = np.zeros(self._frame.height, dtype=bool)
        for category in categories:
            items = self._groups[CATEGORIES].items_of(category)
            items = items if self.listed is None else items[self.listed[items]]
            if not len(items):
                raise RuleError(f"no item has the category {category!r}; see /v1/categories", (CATEGORIES,))
            allow[items] = True
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
                return self._bitmaps[key][1]
        try:
            found = mask(self._frame, [compiled(node, self._table, place)])
        except FilterError as error:
            raise RuleError(str(error), error.place) from error
        with self._mutex:
            if key not in self._bitmaps:
                self._keep(key, node, found)
        return found

    def allowed(self, categories: Sequence[str], node: Node | None) -> BoolArray | None:
        """bool [N], not to be written to: listed items with at least one of these categories, and for which the filter
        holds. None: all items.

        Args:
            categories: none allow every one.
            node: a filter without names; None allows everything.

        Raises:
            RuleError: a part of it does not fit the catalogue.
        """
        if not categories and (node is None or self.listed is None):
            return self.listed if node is None else self.permitted(node)
        key = (tuple(sorted(set(categories))), None if node is None else filter_key(node))
        with self._mutex:
            if key in self._combined:
                self._combined.move_to_end(key)
                return self._combined[key]
        parts = [] if self.listed is None else [self.listed]
        if categories:
            parts.append(self.in_categories(categories))
        if node is not None:
            parts.append(self.permitted(node))
        found = frozen(reduce(and_, parts))
        with self._mutex:
            self._combined[key] = found
            while len(self._combined) > _LEAST_CACHED and len(self._combined) * len(found) > _CACHE_BYTES:
                self._combined.popitem(last=False)
        return found

    def _keep(self, key: str, node: Node, bitmap: BoolArray) -> None:
        """Keep what a filter permits, and forget what was not asked for for the longest time."""
        self._bitmaps[key] = (node, frozen(bitmap))
        self._cached_bytes += len(bitmap) + _NODE_BYTES * len(key)
        while self._cached_bytes > _CACHE_BYTES and len(self._bitmaps) > _LEAST_CACHED:
            oldest, (_, dropped) = self._bitmaps.popitem(last=False)
            self._cached_bytes -= len(dropped) + _NODE_BYTES * len(oldest)

    def groups(self, column: str, place: Place = ()) -> Groups:
        """The groups of items that a column makes: equal texts, or lists with a common entry.

        Args:
            column: of the catalogue.
            place: of its name in the request.

        Raises:
            RuleError: there is no such column.
        """
        with self._mutex:
            groups = self._groups.get(column)
        if groups is None:
            if column not in self._frame.columns:
                raise RuleError(f"there is no column {column!r}; there are: {', '.join(self._frame.columns)}", place)
            groups = ColumnGroups.of(self._frame[column])
            with self._mutex:
                groups = self._groups.setdefault(column, groups)
        return groups.groups

    def has_ready(self, nodes: Sequence[Node], columns: Sequence[str]) -> bool:
        """Whether these filters, and the groups of these columns, were asked for before and cost next to nothing."""
        with self._mutex:
            return all(filter_key(node) in self._bitmaps for node in nodes) and all(
                column in self._groups and self._groups[column].is_ready for column in columns
            )

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


def filter_key(node: Node) -> str:
    """Equal for equal filters: its JSON, whose keys are always in the same order."""
    return _FILTER.dump_json(node, by_alias=True).decode()
