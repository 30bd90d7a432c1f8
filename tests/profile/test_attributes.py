from __future__ import annotations

import gc
import weakref

import numpy as np
import polars as pl
import pytest

from recsys.data import Catalog
from recsys.profile import attributes as attributes_module
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


def test_titles_whose_words_have_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes_module, "hash", lambda words: 7, raising=False)
    titles = ["Red Lamp (1999)", "Blue Lamp", "The Lamp", "Red lamps", None]
    frame = pl.DataFrame(
        {"item_id": list("abcde"), "title": titles, "categories": [[]] * 5},
        schema_overrides={"categories": pl.List(pl.String)},
    )
    found = ItemAttributes(Catalog(frame=frame))
    assert list(found.titles) == ["Red Lamp", "Blue Lamp", "The Lamp", "Red lamps", ""]
    assert found.titles[1:3] == ["Blue Lamp", "The Lamp"]
    # Of titles with the same words the last one is named; one word and an article are no title.
    assert names(found, "Blue Lamp, Red Lamp, The Lamp, Green Lamp") == [("title", "Blue Lamp"), ("title", "Red lamps")]


def test_what_is_category_and_brand_is_a_category_and_lists_are_joined() -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["x (1984)", "y", "z"],
            "categories": [["Retinol", None, "", "Retinol"], [], None],
            "brand": [["Retinol ", ""], ["Two", "Names."], None],
            "year": [None, " 1991.", "soon"],
        }
    )
    catalog = Catalog(frame=frame.with_columns(pl.col("categories").fill_null([])))
    found = ItemAttributes(catalog)
    assert [[each.name for each in found.of(item)] for item in range(3)] == [
        ["Retinol", "Retinol", "1980s"],
        ["Two, Names", "1990s"],
        [],
    ]
    assert names(found, "Retinol by Two Names from the 1980s") == [
        ("category", "Retinol"),
        ("brand", "Two, Names"),
        ("era", "1980s"),
    ]


def test_nothing_keeps_attributes_that_nobody_has(catalog: Catalog) -> None:
    found = ItemAttributes(catalog)
    assert found.of(np.int64(1)) == found.of(1)
    assert found.titles[np.int64(1)] == "Fast Rain"
    gone = weakref.ref(found)
    gc.disable()
    del found
    gc.enable()
    assert gone() is None
