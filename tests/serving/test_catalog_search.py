from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys.data import Catalog
from serving.search import CatalogSearch


@pytest.fixture
def search() -> CatalogSearch:
    rows = [
        ("a1", "Star Wars", ["Sci-Fi"]),
        ("a2", "A Star Is Born", ["Drama"]),
        ("a3", "Starship Troopers", ["Sci-Fi", "War"]),
        ("a4", "Mustard", []),
        ("a5", None, ["Star gazing"]),
        ("star", "Unrelated (50% *off*)", ["Drama"]),
    ]
    frame = pl.DataFrame(
        rows,
        schema={"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)},
        orient="row",
    )
    return CatalogSearch(Catalog(frame=frame), np.array([1, 9, 5, 2, 3, 4]))


def test_matches_are_ranked_by_place_then_popularity(search: CatalogSearch) -> None:
    assert search.find("star", limit=10) == ([5, 2, 0, 1, 3, 4], 6)


def test_every_word_must_occur_somewhere(search: CatalogSearch) -> None:
    assert search.find("sci-fi star", limit=10) == ([2, 0], 2)
    assert search.find("drama  BORN", limit=10) == ([1], 1)


def test_the_query_is_text_and_no_pattern(search: CatalogSearch) -> None:
    assert search.find("% *off*)", limit=10) == ([5], 1)
    assert search.find(".*", limit=10) == ([], 0)


def test_pages_are_disjoint_and_complete(search: CatalogSearch) -> None:
    everything, total = search.find("", limit=10)
    pages = [item for offset in range(0, total, 4) for item in search.find("", limit=4, offset=offset)[0]]
    assert pages == everything == [1, 2, 5, 4, 3, 0]
