"""A log on disk under the source's own ids, and what DuckDB finds out about it without holding it in memory.

Joins, groups and the one sort of a log are made here, within `_MEMORY`; what does not fit goes to files beside the log.
Knows nothing of the steps that a configuration asks for.
"""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.sequences import IntArray
from recsys.errors import DataError

_MEMORY = "2GiB"
_FETCHED_ROWS = 1 << 20

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class LogFacts:
    """What is known of the rows of a log."""

    num_rows: int
    num_ratings: int
    """Rows with a rating."""
    lowest_rating: float | None
    highest_rating: float | None
    has_timestamps: bool
    """Whether every row has one."""
    has_positions: bool
    """Whether every row has one."""


@contextmanager
def scratch_directory(directory: Path | None) -> Iterator[Path]:
    """A directory for the time of the block: emptied before, removed afterwards. None: one where the system keeps
    temporary files."""
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="recsys-data-"))  # that nobody else can read
    else:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def spilled(
    events: pl.DataFrame | Iterable[pl.DataFrame], scratch: Path | None, threads: int | None
) -> Iterator[SpilledLog]:
    """Write a log down for the time of the block.

    Args:
        events: columns of EVENT_SCHEMA, whole or in pieces, in the source's order.
        scratch: a directory for the log and for what does not fit into memory, see `scratch_directory`.
        threads: that DuckDB may use; None: one a processor.

    Raises:
        DataError: the disk is full.
    """
    with scratch_directory(scratch) as directory, _without_room(directory), duckdb.connect() as database:
        _write(events, directory)
        database.execute(f"SET memory_limit = '{_MEMORY}'")
        database.execute(f"SET temp_directory = '{_quoted(directory / 'overflow')}'")
        # Rows carry their number, and every order that counts is asked for.
        database.execute("SET preserve_insertion_order = false")
        if threads is not None:
            database.execute(f"SET threads = {threads}")
        yield SpilledLog(database, directory)


@contextmanager
def _without_room(directory: Path) -> Iterator[None]:
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{directory}: the log could not be put in order: {reason}; make room on that disk") from error


def _write(events: pl.DataFrame | Iterable[pl.DataFrame], directory: Path) -> None:
    begin = 0
    for number, batch in enumerate([events] if isinstance(events, pl.DataFrame) else events):
        row = pl.int_range(begin, begin + batch.height, dtype=pl.Int64).alias("row")
        batch.with_columns(row).write_parquet(directory / f"events-{number}.parquet", compression="lz4")
        begin += batch.height


def _quoted(text: Path | str) -> str:
    """The inside of a string of SQL."""
    return str(text).replace("'", "''")


class SpilledLog:
    """The rows of a log, fewer after each `keep_...`, and the items that they may name."""

    def __init__(self, database: duckdb.DuckDBPyConnection, directory: Path) -> None:
        self._database = database
        self._directory = directory
        self._kept = "true"
        self._parameters: dict[str, Any] = {}
        self._view("events", "events-*.parquet")

    def _view(self, name: str, files: str) -> None:
        pattern = _quoted(f"{glob.escape(str(self._directory))}/{files}")
        self._database.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{pattern}')")

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._database.execute(sql, self._used(sql)).fetchall()

    def _used(self, sql: str) -> dict[str, Any]:
        """The parameters that a query names; DuckDB takes no others."""
        return {name: value for name, value in self._parameters.items() if f"${name}" in sql}

    def _batches(self, sql: str) -> Iterator[Columns]:
        """The result of a query, as it is computed."""
        for batch in self._database.sql(sql, params=self._used(sql)).to_arrow_reader(_FETCHED_ROWS):
            yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}

    def know_items(self, item_ids: pl.Series, *, ranked: bool) -> None:
        """State the catalogue: `item_ids` (String, unique) by dense index.

        Args:
            ranked: whether ties will be ordered by item id.
        """
        items = pl.DataFrame({"item_id": item_ids, "item": pl.int_range(len(item_ids), dtype=pl.Int32, eager=True)})
        rank = "row_number() OVER (ORDER BY item_id)" if ranked else "0"
        self._database.register("catalogue", items.to_arrow())
        self._database.execute(f"CREATE TABLE items AS SELECT item_id, item, {rank} AS tie FROM catalogue")
        self._database.unregister("catalogue")

    def unknown_items(self, num_examples: int) -> tuple[int, int, list[str]]:
        """Rows that name an item which is not known, the number of such items, and the first of them."""
        unknown = "FROM events ANTI JOIN items USING (item_id)"
        [(num_rows, num_items)] = self._rows(f"SELECT count(*), count(DISTINCT item_id) {unknown}")
        if not num_rows:
            return 0, 0, []
        first = f"SELECT item_id {unknown} GROUP BY item_id ORDER BY min(row) LIMIT {num_examples}"
        return num_rows, num_items, [item_id for (item_id,) in self._rows(first)]

    def event_types(self) -> list[str]:
        """The event types that occur, sorted."""
        return [name for (name,) in self._rows(f"SELECT DISTINCT event_type FROM events WHERE {self._kept} ORDER BY 1")]

    def facts(self) -> LogFacts:
        """Of the rows that are kept."""
        [(num_rows, times, positions, ratings, lowest, highest)] = self._rows(
            "SELECT count(*), count(timestamp), count(position), count(rating), min(rating), max(rating) "
            f"FROM events WHERE {self._kept}"
        )
        return LogFacts(
            num_rows=num_rows,
            num_ratings=ratings,
            lowest_rating=lowest,
            highest_rating=highest,
            has_timestamps=times == num_rows,
            has_positions=positions == num_rows,
        )

    def keep_event_types(self, names: list[str]) -> None:
        """Drop the rows of other event types."""
        self._kept += " AND list_contains($names, event_type)"
        self._parameters["names"] = names

    def keep_ratings(self, minimum: float) -> None:
        """Drop the rows with a lower rating; those without one stay."""
        self._kept += " AND (rating IS NULL OR rating >= $minimum)"
        self._parameters["minimum"] = minimum

    def number_users(self) -> None:
        """Give the users of the kept rows an index each, by their first appearance."""
        self._rows(
            "CREATE TABLE users AS SELECT user_id, (row_number() OVER (ORDER BY first) - 1)::INTEGER AS user "
            f"FROM (SELECT user_id, min(row) AS first FROM events WHERE {self._kept} GROUP BY user_id)"
        )

    def user_ids(self, users: IntArray) -> list[str]:
        """Ids of users, int64 and ascending, by the index that `number_users` gave."""
        ids: pl.Series = self._database.sql("SELECT user_id FROM users ORDER BY user").pl()["user_id"]
        return ids.gather(users).to_list()

    def shuffle_ties(self, seed: int) -> None:
        """Make a random order of the kept rows known, for `ordered`."""
        [(end,)] = self._rows("SELECT coalesce(max(row) + 1, 0) FROM events")
        kept = np.zeros(end, dtype=bool)
        for batch in self._batches(f"SELECT row FROM events WHERE {self._kept}"):
            kept[batch["row"]] = True
        tie = np.zeros(end, dtype=np.int64)
        tie[kept] = np.random.default_rng(seed).permutation(int(kept.sum()))
        path = self._directory / "shuffled.parquet"
        pl.DataFrame({"row": pl.int_range(end, eager=True), "tie": tie}).write_parquet(path, compression="lz4")
        self._view("shuffled", path.name)

    def ordered(self, keys: list[str], columns: list[str], event_types: list[str]) -> Iterator[Columns]:
        """The kept rows by user, then by `keys`, then as they came, in pieces.

        Args:
            keys: of `timestamp`, `position`, `item_id` and `shuffled`.
            columns: of `rating`, `timestamp` and `position`, beside `user` (int32), `item` (int32) and `event_type`
                (int32), which are indices.
            event_types: what the third is an index of.
        """
        order = {"item_id": "items.tie", "shuffled": "shuffled.tie"}
        by = ", ".join(["users.user", *(order.get(key, key) for key in keys), "events.row"])
        shuffled = "JOIN shuffled USING (row)" if "shuffled" in keys else ""
        self._parameters["types"] = event_types
        return self._batches(
            f"SELECT {', '.join(['users.user', 'items.item', 'code AS event_type', *columns])} FROM events "
            f"JOIN items USING (item_id) JOIN users USING (user_id) {shuffled} "
            "JOIN (SELECT unnest($types) AS event_type, unnest(range(len($types)))::INTEGER AS code) "
            f"USING (event_type) WHERE {self._kept} ORDER BY {by}"
        )
