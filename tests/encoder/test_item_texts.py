from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from recsys.data import Catalog
from recsys.encoder import EncoderConfig, item_texts
from recsys.errors import ConfigError


def catalog(**columns: list) -> Catalog:
    size = len(next(iter(columns.values())))
    frame = {"item_id": [f"i{row}" for row in range(size)], "title": [None] * size, "categories": [[]] * size} | columns
    schema = {name: pl.List(pl.String) if name in ("categories", "tags") else pl.String for name in frame}
    return Catalog(frame=pl.DataFrame(frame, schema=schema))


def test_segments_without_a_value_are_left_out() -> None:
    items = catalog(
        title=["Red polish", None, " "],
        categories=[["Nails", "Polish"], ["Lips"], []],
        brand=["OPI", None, "Acme"],
    )
    assert item_texts(items, EncoderConfig()) == [
        "Red polish. Brand: OPI. Categories: Nails, Polish",
        "Categories: Lips",
        "Brand: Acme",
    ]


def test_catalogue_with_categories_only_works() -> None:
    assert item_texts(catalog(categories=[["Balls"], ["Nets"]]), EncoderConfig()) == [
        "Categories: Balls",
        "Categories: Nets",
    ]


def test_item_without_any_text_is_counted_and_kept(capsys) -> None:
    assert item_texts(catalog(title=["a", None]), EncoderConfig()) == ["a", ""]
    assert "1 of 2 items have no text" in capsys.readouterr().err


def test_template_reads_any_column_and_keeps_what_is_around_it() -> None:
    items = catalog(title=["a"], tags=[["x", "y"]], material=["wood"])
    config = EncoderConfig(template=("{title}", "made of {material}!", "tags: {tags}"))
    assert item_texts(items, config) == ["a. made of wood!. tags: x, y"]


def test_template_without_a_matching_column_names_the_columns() -> None:
    with pytest.raises(ConfigError, match=r"names headline, but the catalogue has only item_id, title, categories"):
        item_texts(catalog(title=["a"]), EncoderConfig(template=("{headline}",)))


@pytest.mark.parametrize("segment", ["no column", "{a} and {b}", "{}", "{a", "{title!r}", "{title:>9}"])
def test_segment_must_name_exactly_one_column(segment: str) -> None:
    with pytest.raises(ValidationError, match="must name exactly one column in braces"):
        EncoderConfig(template=(segment,))
