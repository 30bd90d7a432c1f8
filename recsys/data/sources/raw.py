"""What every source hands over: the catalogue and the log under the source's own ids, cast but not yet
filtered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

DEFAULT_EVENT_TYPE = "interaction"

EVENT_SCHEMA = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "event_type": pl.String(),
    "rating": pl.Float64(),
    "timestamp": pl.Int64(),
    "position": pl.Int64(),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RawData:
    """A source's tables, rows in the source's order."""

    items: pl.DataFrame
    """As `Catalog.frame`."""
    events: pl.DataFrame | Iterable[pl.DataFrame]
    """Columns of EVENT_SCHEMA, whole or in pieces that are made as they are read. `timestamp` (seconds, UTC) and
    `position` are each known for all rows or for none (all null); `rating` may be null anywhere."""


def event_frame(columns: dict[str, pl.Series]) -> pl.DataFrame:
    """Events with every column of EVENT_SCHEMA, in its order; what `columns` lacks is filled in."""
    frame = pl.DataFrame([series.alias(name) for name, series in columns.items()])
    missing = [
        pl.lit(DEFAULT_EVENT_TYPE if name == "event_type" else None, dtype=dtype).alias(name)
        for name, dtype in EVENT_SCHEMA.items()
        if name not in columns
    ]
    return frame.with_columns(missing).select(*EVENT_SCHEMA)


def item_frame(columns: dict[str, pl.Series]) -> pl.DataFrame:
    """Items with `item_id`, `title` and `categories` first; an unknown title is null, unknown categories are
    empty."""
    frame = pl.DataFrame([series.alias(name) for name, series in columns.items()])
    if "title" not in columns:
        frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias("title"))
    if "categories" not in columns:
        frame = frame.with_columns(pl.lit([], dtype=pl.List(pl.String)).alias("categories"))
    return frame.select("item_id", "title", "categories", pl.exclude("item_id", "title", "categories"))
