"""Your own tables: Parquet, CSV or JSON lines, with a map from our column names to yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from recsys.data import tables
from recsys.data.config import DataConfig
from recsys.data.sources.raw import DEFAULT_EVENT_TYPE, RawData, event_frame, item_frame
from recsys.data.sources.shards import Shard, find_shards
from recsys.errors import ConfigError, DataError
from recsys.progress import progress_bar

_EVENT_COLUMNS = ("user_id", "item_id", "event_type", "rating", "timestamp", "position")
_LIST_COLUMNS = ("categories", "tags")


def is_import_folder(path: Path) -> bool:
    """Whether a folder holds `items.parquet` and `interactions.parquet`."""
    return (path / "items.parquet").is_file() and (path / "interactions.parquet").is_file()


def load(config: DataConfig, scratch: Path) -> RawData:
    """Read `config.items` and `config.interactions` under `config.path`; the log piece by piece, as it is asked for.

    Args:
        config: where the tables are and what their columns are called.
        scratch: a directory for copies of the files that are not on this machine.

    Raises:
        ConfigError: the column map names a column of ours that does not exist.
        DataError: a file or column is missing or malformed; also when the log is read.
    """
    root = config.path
    assert root is not None
    if isinstance(root, Path) and not root.is_dir():
        raise DataError(f"path: {root} is no folder")
    unknown = sorted(set(config.interaction_columns) - set(_EVENT_COLUMNS))
    if unknown:
        raise ConfigError(
            f"interaction_columns: unknown name {unknown[0]!r}; the names are {', '.join(_EVENT_COLUMNS)}"
        )
    items = _Table(find_shards(root, config.items), config.item_columns, ("item_id",), partial(_cast_item, config))
    events = _Table(
        find_shards(root, config.interactions),
        config.interaction_columns,
        ("user_id", "item_id"),
        partial(_cast_event, config),
        known=_EVENT_COLUMNS,
    )
    frames = [item_frame(columns) for columns in items.read(scratch)]
    return RawData(items=pl.concat(frames), events=map(event_frame, events.read(scratch)))


@dataclass(frozen=True)
class _Table:
    """The files of a table, and what their columns become."""

    shards: list[Shard]
    names: dict[str, str]
    """Our name -> column, where the configuration has a map."""
    required: tuple[str, ...]
    cast: Callable[[str, pl.Series, str], pl.Series]
    """Our name, the column and the table's name -> the column as it should be."""
    known: tuple[str, ...] | None = None
    """Our names that are used, in the order in which they are checked; None: all."""

    def read(self, scratch: Path) -> Iterator[dict[str, pl.Series]]:
        """Our name -> cast column, piece by piece. All files must have the columns of the first, in any order; of
        several, some may be empty."""
        first: dict[str, pl.DataType] | None = None
        with progress_bar(f"read {self.shards[0].name}", len(self.shards), least=2) as advance:
            for shard in self.shards:
                with shard.fetched(scratch) as path, tables.opened(path, scratch) as table:
                    for piece in self._pieces(table, shard.name):
                        found = {name: column.dtype for name, column in piece.items()}
                        first = found if first is None else first
                        if found != first:
                            raise DataError(
                                f"{shard.name}: the columns are {_listed(found)}, and those of files before it "
                                f"{_listed(first)}; write all files of a table with the same columns"
                            )
                        yield {name: piece[name] for name in first}
                advance(1, "")
        if first is None:
            raise DataError(f"{self.shards[0].path}: the table has no rows")

    def _pieces(self, opened: tables.OpenTable, table: str) -> Iterator[dict[str, pl.Series]]:
        names = self._names(opened.columns, table)
        forms = set()
        for first, count in opened.stretches:
            frame = opened.read(names.values(), first, count)
            # A column of texts is one of numbers or of dates as a whole.
            time = frame[names["timestamp"]] if "timestamp" in names else None
            forms |= {tables.holds_numbers(time)} if time is not None and time.dtype == pl.String else set()
            try:
                piece = {ours: self.cast(ours, frame[theirs], table) for ours, theirs in names.items()}
            except DataError:
                self._raise_for_all_rows(opened, names, table)
                raise
            if len(forms) > 1:
                self._raise_for_all_rows(opened, names, table)
            yield piece

    def _names(self, columns: list[str], table: str) -> dict[str, str]:
        """Our name -> column; only the mapped columns where there is a map."""
        wanted = self.names or {name: name for name in columns}
        wanted = {**{name: name for name in self.required}, **wanted}
        for ours, theirs in wanted.items():
            if theirs not in columns:
                raise DataError(
                    f"{table}: column {theirs!r} (our {ours}) is missing among {len(columns)} columns "
                    f"({', '.join(columns)}); rename it or map it in the column map"
                )
        return {ours: wanted[ours] for ours in self.known or wanted if ours in wanted}

    def _raise_for_all_rows(self, opened: tables.OpenTable, names: dict[str, str], table: str) -> None:
        """Say what is wrong with a file: which column is the first, in how many of all rows."""
        for ours, theirs in names.items():
            self.cast(ours, opened.read([theirs])[theirs], table)


def _listed(columns: dict[str, pl.DataType]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in columns.items())


def _cast_item(config: DataConfig, name: str, column: pl.Series, table: str) -> pl.Series:
    if name == "item_id":
        return tables.as_ids(column, table)
    if name in _LIST_COLUMNS or isinstance(column.dtype, pl.List):
        return tables.as_text_list(column, table, config.category_separator)
    return tables.as_text(column, table)


def _cast_event(config: DataConfig, name: str, column: pl.Series, table: str) -> pl.Series:
    if name in ("user_id", "item_id"):
        return tables.as_ids(column, table)
    if name == "event_type":
        return tables.as_text(column, table).fill_null(DEFAULT_EVENT_TYPE)
    if name == "rating":
        return tables.as_number(column, table)
    if name == "timestamp":
        return tables.as_timestamp(column, table, config.timestamp_unit)
    return tables.as_whole_number(column, table)
