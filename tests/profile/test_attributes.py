from __future__ import annotations

import polars as pl
import pytest

from recsys.data import Catalog
from recsys.profile.attributes import Attribute, ItemAttributes


def names(attributes: ItemAttributes, text: str) -> list[tuple[str, str]]:
    return [(each.kind, each.name) for each in attributes.named(text)]


def test_an_item_has_categories_a_brand_and_the_decade_of_its_title(attributes: ItemAttributes) -> None:
    assert attributes.of(1) == (
        Attribute(kind="category", name="Action"),
        Attribute(kind="category", name="Crime"),
        Attribute(kind="brand", name="Tall Films"),
        Attribute(kind="era", name="1980s"),
    )
    assert attributes.titles[1] == "Fast Rain"


def test_a_year_column_goes_before_the_title() -> None:
    frame = pl.DataFrame({"item_id": ["a"], "title": ["X Y (1999)"], "categories": [[]], "year": ["2001"]})
    catalog = Catalog(frame=frame.with_columns(pl.col("categories").cast(pl.List(pl.String))))
    assert ItemAttributes(catalog).of(0) == (Attribute(kind="era", name="2000s"),)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Loves romances and sci fi, mostly from the 1990's.", ["Romance", "Sci-Fi", "1990s"]),
        ("COMEDIES by tall films", ["Comedy", "Tall Films"]),
        ("Watched Fast Rain twice", ["Fast Rain"]),
        ("Enjoys a long kiss, fast rain and heat", []),
        ("Heat and Dawn", []),
        ("", []),
    ],
)
def test_names_are_found_word_by_word(attributes: ItemAttributes, text: str, found: list[str]) -> None:
    assert [name for _, name in names(attributes, text)] == found


def test_what_is_title_and_category_is_a_category() -> None:
    frame = pl.DataFrame({"item_id": ["a"], "title": ["Film Noir"], "categories": [["Film-Noir"]]})
    assert names(ItemAttributes(Catalog(frame=frame)), "Film Noir") == [("category", "Film-Noir")]


def test_what_more_than_half_of_the_items_have_is_commonplace() -> None:
    frame = pl.DataFrame({"item_id": list("abc"), "title": ["x"] * 3, "categories": [["All"], ["All", "One"], ["All"]]})
    assert {each.name for each in ItemAttributes(Catalog(frame=frame)).commonplace} == {"All"}
