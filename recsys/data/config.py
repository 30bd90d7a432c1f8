"""The `data` section of a run's configuration. Says what to load and how to prepare it; loads nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from recsys.config import StrictConfig

MOVIELENS_NAMES = ("ml-100k", "ml-1m", "ml-latest-small")
AMAZON_NAME = r"amazon-(2014|2018|2023)/(\w+)"


def _path_or_url(value: object) -> object:
    return Path(value) if isinstance(value, str) and "://" not in value else value


class SplitConfig(StrictConfig):
    """How interactions are divided into training, validation and test."""

    kind: Literal["leave_last_out", "global_time"] = "leave_last_out"
    """`leave_last_out`: each user's last item is the test target and the one before it the validation target
    (what most papers report; it lets the future of other users leak into training); users with under 3
    interactions give no target and are training as a whole. `global_time`: everything before one moment is
    training, and the targets are the last item of each user in the two windows after it."""
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)
    """`global_time`: share of the interactions in the validation window, when no moments are given."""
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """`global_time`: share of the interactions in the test window, when no moments are given."""
    valid_from: datetime | None = None
    """`global_time`: start of the validation window (ISO 8601, UTC unless it says otherwise)."""
    test_from: datetime | None = None
    """`global_time`: start of the test window."""
    held_out_items: float = Field(default=0.0, ge=0, lt=1)
    """Share of the items that nothing is fitted on: their training interactions are dropped, and they join the
    catalogue once the models stand. It measures how new items fare (the report's segment `cold`)."""
    held_out_seed: int = 0
    """Seed of the choice of those items."""

    @field_validator("valid_from", "test_from")
    @classmethod
    def _as_utc(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value

    @model_validator(mode="after")
    def _windows_are_possible(self) -> Self:
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError("valid_from and test_from must be given together")
        if self.valid_from is not None and self.test_from is not None and self.valid_from >= self.test_from:
            raise ValueError(f"valid_from ({self.valid_from}) must lie before test_from ({self.test_from})")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must be below 1")
        return self

    @model_validator(mode="after")
    def _leave_last_out_has_no_windows(self) -> Self:
        # A printed configuration states the defaults too, so only another value shows that a window was meant.
        if self.kind == "leave_last_out":
            fields = type(self).model_fields
            windows = ("valid_fraction", "test_fraction", "valid_from", "test_from")
            if meant := [name for name in windows if getattr(self, name) != fields[name].default]:
                raise ValueError(
                    f"{' and '.join(meant)} would be ignored by kind: leave_last_out; remove, or set kind: global_time"
                )
        return self


class DataConfig(StrictConfig):
    """Which data set, and what is done to it before the split.

    The steps run in this order: event types, rating threshold, order and ties, repeats, k-core, catalogue
    scope."""

    source: Literal["movielens", "amazon", "files"] = "movielens"
    """`movielens` and `amazon` are downloaded by `name`; `files` are your own, under `path`."""
    name: str | None = None
    """`ml-100k` (default), `ml-1m` or `ml-latest-small`; `amazon-2014/Beauty`, `amazon-2018/All_Beauty`,
    `amazon-2023/All_Beauty` and so on; for `files` any label (default: the folder's name)."""
    path: Annotated[Path | str, BeforeValidator(_path_or_url)] | None = None
    """A folder read instead of downloading. With `items.parquet` and `interactions.parquet` in the import
    format it needs nothing else, whatever `source` says; otherwise it holds the source's official files, or
    your own. `files`: also the URL of a folder that fsspec can read (s3://, gs://)."""
    items: str = "items.parquet"
    """`files`: the catalogue, relative to `path`; .parquet, .csv or .jsonl (the last two also .gz). Of many files:
    a folder of Parquet files, or a glob (`items/*.parquet`), read in the order of their names."""
    interactions: str = "interactions.parquet"
    """`files`: the interaction log, relative to `path`; the same."""
    item_columns: dict[str, str] = Field(default={})
    """`files`: our name -> your column in the catalogue, for instance {item_id: sku, title: name}. When
    given, only these columns are read; when empty, all are, under their own names. Only item_id is
    required."""
    interaction_columns: dict[str, str] = Field(default={})
    """`files`: the same for the log: user_id and item_id are required; timestamp, position, rating and
    event_type are used where they exist."""
    category_separator: str = Field(default="|", min_length=1)
    """`files`: what separates categories in a text column; list columns need none."""
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"
    """`files`: unit of numeric timestamps. Dates, datetimes and ISO 8601 text are understood without it."""
    event_types: list[str] | None = None
    """Event types to keep, for instance [purchase]; all when not given."""
    min_rating: float | None = None
    """Rows with a lower rating are dropped; rows without a rating (a click, say) stay."""
    tie_order: Literal["source", "item_id", "shuffle"] = "source"
    """Order of a user's interactions within one timestamp: as in the source, by item id, or random by
    `tie_seed`. Where the log has positions they decide first. Files sorted by item (Amazon's) give ties a
    predictable direction under `source`; published results use it."""
    tie_seed: int = 0
    """Seed of `tie_order: shuffle`."""
    deduplicate: Literal["none", "first", "last"] = "none"
    """What stays of several interactions of a user with one item: all, the oldest or the newest."""
    min_user_interactions: int = Field(default=1, ge=1)
    """k-core: users with fewer interactions are dropped, repeated with the item minimum until both hold."""
    min_item_interactions: int = Field(default=1, ge=1)
    """k-core: items with fewer interactions leave the log, and with `catalog: interacted` the catalogue."""
    catalog: Literal["all", "interacted"] | None = None
    """Which items can be recommended: all of the source's, or those left in the log. Default: `interacted`
    for Amazon's official files (their metadata cover far more than the log), else `all`."""
    split: SplitConfig = SplitConfig()
    """Training, validation and test."""

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.source == "movielens" and self.path is None and self.dataset_name not in MOVIELENS_NAMES:
            raise ValueError(f"name: {self.name!r} is no MovieLens set; choose one of {', '.join(MOVIELENS_NAMES)}")
        if self.source == "amazon" and self.path is None and not re.fullmatch(AMAZON_NAME, self.name or ""):
            raise ValueError(f"name: {self.name!r} must be amazon-YEAR/CATEGORY, for instance amazon-2014/Beauty")
        if self.source == "files" and self.path is None:
            raise ValueError("path is required for source: files: the folder that holds your tables")
        if self.source != "files" and isinstance(self.path, str):
            raise ValueError(f"path: a URL ({self.path}) needs source: files")
        return self

    @property
    def dataset_name(self) -> str:
        """The label that reports print."""
        if self.name is not None:
            return self.name
        if isinstance(self.path, str):
            return self.path.rstrip("/").rsplit("/", 1)[-1]
        if self.path is not None:
            return self.path.resolve().name
        return MOVIELENS_NAMES[0]
