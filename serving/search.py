"""Finds items of the catalogue by words. Knows neither the model nor HTTP."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data import Catalog
from recsys.data.catalog import with_rows
from recsys.data.sequences import IntArray


class CatalogSearch:
    """Case-insensitive search for substrings in titles, categories and ids.

    Args:
        catalog: all items.
        item_counts: int64 [num_items]; of equally good matches the more popular one comes first.
        listed: bool [num_items], which items are found; None: all.
    """

    def __init__(self, catalog: Catalog, item_counts: IntArray, listed: npt.NDArray[np.bool_] | None = None) -> None:
        self._items = _searchable(catalog.frame, np.arange(catalog.num_items), item_counts)
        self._listed = None if listed is None else pl.Series(listed)

    def over(
        self, rows: pl.DataFrame, at: IntArray, item_counts: IntArray, listed: npt.NDArray[np.bool_] | None
    ) -> CatalogSearch:
        """The search of a newer version of the catalogue; this one stays as it is.

        Args:
            rows: items that have changed or are new.
            at: int64, ascending, their dense indices.
            item_counts: int64, of the same items.
            listed: bool [num_items], as in the constructor.
        """
        twin = copy.copy(self)
        if len(at):
            twin._items = with_rows(self._items, _searchable(rows, at, item_counts), at)
        twin._listed = None if listed is None else pl.Series(listed)
        return twin

    def find(self, query: str, *, limit: int, offset: int = 0) -> tuple[list[int], int]:
        """One page of the items in which every word of `query` occurs, best first, and how many there are.

        See `matches` for the order. An empty query finds all items.
        """
        found = self.matches(query)
        return found.best(offset + limit)[offset:].tolist(), len(found)

    def matches(self, query: str) -> Matches:
        """The items in which every word of `query` occurs.

        Ranked by where the whole query occurs: the id itself, the start of the title, the start of a word in
        it, elsewhere in the title, or only its words somewhere; then by popularity.
        """
        phrase = query.strip().lower()
        words = phrase.split()
        title, anywhere = pl.col("title"), pl.concat_str("title", "categories", "id", separator=" ")
        rank = (
            pl.when(pl.col("id") == phrase)
            .then(0)
            .when(title.str.starts_with(phrase))
            .then(1)
            .when(title.str.contains(f" {phrase}", literal=True))
            .then(2)
            .when(title.str.contains(phrase, literal=True))
            .then(3)
            .otherwise(4)
        )
        conditions = [anywhere.str.contains(word, literal=True) for word in words]
        if self._listed is not None:
            conditions.append(pl.lit(self._listed))
        found = self._items.lazy().filter(conditions or True).select(rank.alias("rank"), "count", "item")
        return Matches(found.collect())


@dataclass(frozen=True, eq=False)
class Matches:
    """What a search has found; put in order as far as it is asked for."""

    _found: pl.DataFrame

    def __len__(self) -> int:
        return self._found.height

    def best(self, count: int) -> IntArray:
        """int64 [count], or all there are: the items, best first."""
        ordered = self._found.lazy().sort("rank", "count", "item", descending=[False, True, False])
        return ordered.head(count).collect()["item"].to_numpy()


def _searchable(items: pl.DataFrame, numbers: IntArray, item_counts: IntArray) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item": numbers,
            "id": items["item_id"].str.to_lowercase(),
            "title": items["title"].fill_null("").str.to_lowercase(),
            "categories": items["categories"].list.join(" ", ignore_nulls=True).str.to_lowercase(),
            "count": item_counts,
        }
    )
