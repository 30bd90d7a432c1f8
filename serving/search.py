"""Finds items of the catalogue by words. Knows neither the model nor HTTP."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data import Catalog
from recsys.data.sequences import IntArray


class CatalogSearch:
    """Case-insensitive search for substrings in titles, categories and ids.

    Args:
        catalog: all items.
        item_counts: int64 [num_items]; of equally good matches the more popular one comes first.
        listed: bool [num_items], which items are found; None: all.
    """

    def __init__(self, catalog: Catalog, item_counts: IntArray, listed: npt.NDArray[np.bool_] | None = None) -> None:
        items = pl.DataFrame(
            {
                "item": pl.int_range(catalog.num_items, eager=True),
                "id": catalog.frame["item_id"].str.to_lowercase(),
                "title": catalog.frame["title"].fill_null("").str.to_lowercase(),
                "categories": catalog.frame["categories"].list.join(" ", ignore_nulls=True).str.to_lowercase(),
                "count": item_counts,
            }
        )
        self._items = items if listed is None else items.filter(listed)

    def find(self, query: str, *, limit: int, offset: int = 0) -> tuple[list[int], int]:
        """One page of the items in which every word of `query` occurs, best first, and how many there are.

        Ranked by where the whole query occurs: the id itself, the start of the title, the start of a word in
        it, elsewhere in the title, or only its words somewhere; then by popularity. An empty query finds all
        items.
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
        found = (
            self._items.lazy()
            .filter([anywhere.str.contains(word, literal=True) for word in words] or True)
            .with_columns(rank.alias("rank"))
            .sort("rank", "count", "item", descending=[False, True, False])
            .collect()
        )
        return found["item"][offset : offset + limit].to_list(), len(found)
