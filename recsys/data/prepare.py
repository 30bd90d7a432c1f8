"""From a source's raw tables to a checked Catalog and Interactions: filters, order, repeats, k-core, dense
indices."""

from __future__ import annotations

import numpy as np
import polars as pl

from recsys.data.catalog import Catalog
from recsys.data.config import DataConfig
from recsys.data.interactions import SCHEMA, Interactions
from recsys.data.sources.raw import RawData
from recsys.data.tables import NUM_EXAMPLES
from recsys.errors import DataError


def prepare(raw: RawData, config: DataConfig, *, only_interacted: bool) -> tuple[Catalog, Interactions]:
    """Apply the steps of `DataConfig` in their documented order.

    Args:
        only_interacted: drop items that no remaining interaction names.

    Raises:
        DataError: the tables contradict each other, or a step leaves nothing.
    """
    catalog = Catalog(frame=raw.items)
    _check_items_known(raw.events, catalog)
    events = _keep_event_types(raw.events, config.event_types)
    events = _keep_ratings(events, config.min_rating)
    events = _order(events, config)
    if config.deduplicate != "none":
        events = events.unique(["user_id", "item_id"], keep=config.deduplicate, maintain_order=True)
    events = _k_core(events, config.min_user_interactions, config.min_item_interactions)
    if only_interacted:
        catalog = Catalog(frame=raw.items.join(events, on="item_id", how="semi", maintain_order="left"))
    return catalog, _index(events, catalog)


def _check_items_known(events: pl.DataFrame, catalog: Catalog) -> None:
    unknown = events.join(catalog.frame, on="item_id", how="anti", maintain_order="left")["item_id"]
    if len(unknown):
        distinct = unknown.unique(maintain_order=True)
        raise DataError(
            f"interactions: {len(unknown)} of {len(events)} rows name {len(distinct)} items that are not "
            f"among the {len(catalog)} of the catalogue, e.g. {_examples(distinct)}"
        )


def _keep_event_types(events: pl.DataFrame, event_types: list[str] | None) -> pl.DataFrame:
    if event_types is None:
        return events
    present = events["event_type"].unique().sort()
    absent = sorted(set(event_types) - set(present))
    if absent:
        raise DataError(
            f"event_types: {absent[0]!r} occurs in none of {len(events)} interactions; the log has {_examples(present)}"
        )
    return events.filter(pl.col("event_type").is_in(event_types))


def _keep_ratings(events: pl.DataFrame, min_rating: float | None) -> pl.DataFrame:
    if min_rating is None:
        return events
    ratings = events["rating"].drop_nulls()
    if ratings.is_empty():
        raise DataError(f"min_rating: none of {len(events)} interactions has a rating; leave min_rating out")
    kept = events.filter(pl.col("rating").is_null() | (pl.col("rating") >= min_rating))
    if kept.is_empty():
        raise DataError(
            f"min_rating: {min_rating} leaves none of {len(events)} interactions; ratings lie in "
            f"{ratings.min()!r} to {ratings.max()!r}"
        )
    return kept


def _order(events: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    """Sort by user (first appearance), then time, then given positions, then the tie order; the source's row
    order decides what is left."""
    has_time = events["timestamp"].null_count() == 0
    has_position = events["position"].null_count() == 0
    first_seen = pl.col("row").min().over("user_id")
    ordered = events.with_row_index("row").with_columns(first_seen.alias("user_rank"))
    keys = ["user_rank", *(["timestamp"] if has_time else []), *(["position"] if has_position else []), "row"]
    if has_time and has_position:
        _check_positions_follow_time(ordered.sort(keys))
    if config.tie_order == "item_id":
        keys.insert(-1, "item_id")
    elif config.tie_order == "shuffle":
        order = np.random.default_rng(config.tie_seed).permutation(len(events))
        ordered = ordered.with_columns(pl.Series("tie", order))
        keys.insert(-1, "tie")
    if not has_time and not has_position:
        # Row order is all there is, so there are no ties to order.
        keys = ["user_rank", "row"]
    return ordered.sort(keys).drop("row", "user_rank", "tie", strict=False)


def _check_positions_follow_time(by_time: pl.DataFrame) -> None:
    step = pl.col("position").diff().over("user_rank") < 0
    wrong = by_time.filter(step)
    if wrong.height:
        examples = ", ".join(
            f"user {row['user_id']!r} position {row['position']}"
            for row in wrong.head(NUM_EXAMPLES).iter_rows(named=True)
        )
        raise DataError(
            f"interactions: position contradicts timestamp in {wrong.height} of {len(by_time)} rows, e.g. "
            f"{examples}; correct or leave out one of the two columns"
        )


def _k_core(events: pl.DataFrame, min_user: int, min_item: int) -> pl.DataFrame:
    """Drop rare users and items until none is left; dropping one can make the other rare."""
    before = len(events)
    while True:
        kept = events.filter(pl.len().over("user_id") >= min_user) if min_user > 1 else events
        kept = kept.filter(pl.len().over("item_id") >= min_item) if min_item > 1 else kept
        if kept.is_empty():
            raise DataError(
                f"min_user_interactions {min_user} and min_item_interactions {min_item} leave none of "
                f"{before} interactions; lower them"
            )
        if len(kept) == len(events):
            return kept
        events = kept


def _index(events: pl.DataFrame, catalog: Catalog) -> Interactions:
    users = events["user_id"].unique(maintain_order=True)
    user_index = pl.DataFrame({"user_id": users, "user": pl.Series(range(len(users)), dtype=pl.Int64)})
    item_index = catalog.frame.select("item_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("item"))
    frame = (
        events.drop("position")
        .join(user_index, on="user_id", how="left", maintain_order="left")
        .join(item_index, on="item_id", how="left", maintain_order="left")
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over("user").alias("position"))
    )
    return Interactions(frame=frame.select(*SCHEMA), user_ids=users.to_list(), num_items=catalog.num_items)


def _examples(values: pl.Series) -> str:
    return ", ".join(map(repr, values.head(NUM_EXAMPLES).to_list()))
