"""Your own tables: Parquet, CSV or JSON lines, with a map from our column names to yours."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.data import tables
from recsys.data.config import DataConfig
from recsys.data.sources.raw import DEFAULT_EVENT_TYPE, RawData, event_frame, item_frame
from recsys.errors import ConfigError, DataError

_EVENT_COLUMNS = ("user_id", "item_id", "event_type", "rating", "timestamp", "position")
_LIST_COLUMNS = ("categories", "tags")


def is_import_folder(path: Path) -> bool:
    """Whether a folder holds `items.parquet` and `interactions.parquet`."""
    return (path / "items.parquet").is_file() and (path / "interactions.parquet").is_file()


def load(folder: Path, config: DataConfig) -> RawData:
    """Read `config.items` and `config.interactions` under `folder`.

    Raises:
        ConfigError: the column map names a column of ours that does not exist.
        DataError: a file or column is missing or malformed.
    """
    if not folder.is_dir():
        raise DataError(f"path: {folder} is no folder")
    unknown = sorted(set(config.interaction_columns) - set(_EVENT_COLUMNS))
    if unknown:
        raise ConfigError(
            f"interaction_columns: unknown name {unknown[0]!r}; the names are {', '.join(_EVENT_COLUMNS)}"
        )
    items = _rename(tables.read_table(folder / config.items), config.item_columns, config.items, ("item_id",))
    events = _rename(
        tables.read_table(folder / config.interactions),
        config.interaction_columns,
        config.interactions,
        ("user_id", "item_id"),
    )
    return RawData(items=_cast_items(items, config), events=_cast_events(events, config))


def _rename(
    frame: pl.DataFrame, columns: dict[str, str], table: str, required: tuple[str, ...]
) -> dict[str, pl.Series]:
    """Our name -> column; only the mapped columns where there is a map."""
    wanted = columns or {name: name for name in frame.columns}
    wanted = {**{name: name for name in required}, **wanted}
    for ours, theirs in wanted.items():
        if theirs not in frame.columns:
            raise DataError(
                f"{table}: column {theirs!r} (our {ours}) is missing among {len(frame.columns)} columns "
                f"({', '.join(frame.columns)}); rename it or map it in the column map"
            )
    return {ours: frame[theirs] for ours, theirs in wanted.items()}


def _cast_items(columns: dict[str, pl.Series], config: DataConfig) -> pl.DataFrame:
    table = config.items
    cast = {}
    for name, column in columns.items():
        if name == "item_id":
            cast[name] = tables.as_ids(column, table)
        elif name in _LIST_COLUMNS or isinstance(column.dtype, pl.List):
            cast[name] = tables.as_text_list(column, table, config.category_separator)
        else:
            cast[name] = tables.as_text(column, table)
    return item_frame(cast)


def _cast_events(columns: dict[str, pl.Series], config: DataConfig) -> pl.DataFrame:
    table = config.interactions
    cast = {name: tables.as_ids(columns[name], table) for name in ("user_id", "item_id")}
    if "event_type" in columns:
        cast["event_type"] = tables.as_text(columns["event_type"], table).fill_null(DEFAULT_EVENT_TYPE)
    if "rating" in columns:
        cast["rating"] = tables.as_number(columns["rating"], table)
    if "timestamp" in columns:
        cast["timestamp"] = tables.as_timestamp(columns["timestamp"], table, config.timestamp_unit)
    if "position" in columns:
        cast["position"] = tables.as_whole_number(columns["position"], table)
    return event_frame(cast)
