"""From catalogue columns to one text per item. Knows no model."""

from __future__ import annotations

import polars as pl

from recsys.data import Catalog
from recsys.encoder.config import EncoderConfig, split_segment
from recsys.errors import ConfigError
from recsys.progress import console


def item_texts(catalog: Catalog, config: EncoderConfig) -> list[str]:
    """One text per item: the template's segments that have a value, joined by ". ".

    Lists are joined by commas. An item without any value gets an empty text; how many there are goes to stderr.

    Raises:
        ConfigError: none of the template's columns is in the catalogue.
    """
    frame = catalog.frame
    used = [segment for segment in config.template if split_segment(segment)[1] in frame.columns]
    if not used:
        raise ConfigError(
            f"encoder.template names {', '.join(split_segment(segment)[1] for segment in config.template)}, "
            f"but the catalogue has only {', '.join(frame.columns)}"
        )
    text = pl.concat_str([_segment(frame, segment) for segment in used], separator=". ", ignore_nulls=True)
    texts = frame.select(text.alias("text"))["text"].fill_null("").to_list()
    if empty := sum(not value for value in texts):
        console.print(
            f"encoder: {empty} of {len(texts)} items have no text in the template's columns",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return texts


def _segment(frame: pl.DataFrame, segment: str) -> pl.Expr:
    """The filled segment; null where its column is null or blank."""
    before, column, after = split_segment(segment)
    value = pl.col(column)
    if frame.schema[column] == pl.List(pl.String()):
        value = value.list.drop_nulls().list.join(", ")
    value = value.str.strip_chars()
    value = pl.when(value.str.len_chars() > 0).then(value)
    return pl.concat_str([pl.lit(before), value, pl.lit(after)], ignore_nulls=False)
