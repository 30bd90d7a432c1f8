"""Facts about a data set, as one JSON-able dictionary. Prints nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from recsys.data.dataset import Dataset
from recsys.data.split import repeat_share, tie_share

_QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Sizes, history lengths, repeats, ties, text coverage, event types, ratings and time range.

    Shares lie in 0..1. `tie_share` and `time_range` are None without timestamps, `ratings` is None without
    ratings."""
    interactions, catalog = dataset.interactions, dataset.catalog
    frame = interactions.frame
    num_users, num_items = interactions.num_users, catalog.num_items
    lengths = interactions.sequences().lengths
    return {
        "name": dataset.name,
        "users": num_users,
        "items": num_items,
        "interactions": len(interactions),
        "density": len(interactions) / (num_users * num_items),
        "items_without_interactions": num_items - frame["item"].n_unique(),
        "history_length": {
            "mean": float(lengths.mean()),
            **{f"p{round(100 * q)}": float(np.quantile(lengths, q)) for q in _QUANTILES},
        },
        "repeat_share": repeat_share(interactions),
        "tie_share": tie_share(interactions) if interactions.has_timestamps else None,
        "tie_order": dataset.config.tie_order if interactions.has_timestamps else "given positions",
        "text_coverage": {name: _coverage(catalog.frame[name]) for name in catalog.frame.columns if name != "item_id"},
        "event_types": _counts(frame["event_type"]),
        "ratings": _counts(frame["rating"].drop_nulls()) or None,
        "time_range": _time_range(frame["timestamp"]) if interactions.has_timestamps else None,
    }


def _coverage(column: pl.Series) -> float:
    """Share of items that have any text in this column."""
    if isinstance(column.dtype, pl.List):
        return float((column.list.len().fill_null(0) > 0).mean() or 0.0)  # type: ignore[arg-type]
    return 1 - column.null_count() / len(column)


def _counts(column: pl.Series) -> dict[str, int]:
    counted = column.value_counts().sort(column.name)
    return {str(value): int(count) for value, count in counted.iter_rows()}


def _time_range(column: pl.Series) -> dict[str, str]:
    first, last = int(column.min()), int(column.max())  # type: ignore[arg-type]
    return {
        "first": datetime.fromtimestamp(first, tz=UTC).isoformat(),
        "last": datetime.fromtimestamp(last, tz=UTC).isoformat(),
    }
