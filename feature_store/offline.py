"""All events of all users in Parquet files, and what was known at a point in time. Reads; `OfflineWriter` writes.

The columns are those of `feature_store.tables`: of events, and of the lists that were shown.

A model that is trained on what a user did *before* some moment must not see what was not known then. Two times decide:
an event counts at a moment if it happened before it, and if the store had it by then. An event that arrives late, or
a correction that comes days after, is in later histories only (Feast's `filter_by_created_timestamp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import polars as pl

from feature_store.errors import StoreConfigError
from feature_store.events import MAX_HISTORY
from feature_store.keys import digest_of
from feature_store.manifest import DataFile, Manifest, Tombstone
from feature_store.tables import ARRIVAL, SCHEMAS, TIME, Table

_ITEMS, _TIMES = pl.List(pl.String), pl.List(TIME)
_ATTEMPTS = 5
_PAIRS_AT_ONCE = 5_000_000
"""Of a label and an event of its user, about 40 bytes each."""

_T = TypeVar("_T")


class OfflineStore:
    """The events in one directory, as they are at the time of each call.

    Args:
        directory: of an `OfflineWriter`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def manifest(self) -> Manifest:
        """The present state.

        Raises:
            StoreConfigError: there is no store, or it is damaged.
        """
        manifest = Manifest.read(self.directory)
        if manifest is None:
            raise StoreConfigError(f"store: {self.directory} holds no events; run `recsys events consume` first")
        return manifest

    def events(self) -> pl.DataFrame:
        """All events in order of arrival."""
        return self._collect(lambda frame: frame).sort(ARRIVAL)

    def slates(self) -> pl.DataFrame:
        """All lists that were shown to known users, in order of arrival: the columns of `SCHEMAS["slates"]`.

        `feature_store.tables.slates_of` makes records of them.
        """
        return self._collect(lambda frame: frame, table="slates").sort(ARRIVAL)

    def exposures(self) -> pl.DataFrame:
        """Lists that users were shown within experiments, with what came of them; those that testers forced left out.

        Returns:
            Columns experiment, variant, user_id, request_id and outcomes: the types of the events, each once, by
            which the user took an item of the list and which name it (`Event.recommendation_id`). A list that is in
            several experiments has a row for each.
        """
        place = ("user_id", *ARRIVAL)
        item_ids = pl.col("slots").list.eval(pl.element().struct.field("item_id"))
        lists = self._collect(
            lambda frame: frame.filter(pl.col("exposures").list.len() > 0).select(
                *place, "request_id", "exposures", items=item_ids
            ),
            table="slates",
        ).sort(ARRIVAL)
        named = self._collect(
            lambda frame: frame.filter(pl.col("recommendation_id").is_not_null()).select(
                *place, "item_id", "event_type", request_id="recommendation_id"
            )
        )
        key = ["request_id", "user_id"]
        taken = (
            named.join(lists.select(*key, "items"), on=key)
            .filter(pl.col("item_id").is_in(pl.col("items")))
            .group_by(key)
            .agg(outcomes=pl.col("event_type").unique().sort())
        )
        return (
            lists.explode("exposures")
            .unnest("exposures")
            .filter(~pl.col("forced"))
            .join(taken, on=key, how="left", maintain_order="left")
            .select(
                "experiment",
                "variant",
                "user_id",
                "request_id",
                pl.col("outcomes").fill_null(pl.lit([], dtype=pl.List(pl.String))),
            )
        )

    def history(
        self, user_id: str, as_of: datetime, *, as_ingested: bool = True, limit: int | None = None
    ) -> pl.DataFrame:
        """The user's events before a moment, oldest first, in the order of the online history.

        Args:
            user_id: the user.
            as_of: events at this very time do not count.
            as_ingested: leave out events that the store did not have by then.
            limit: at most so many, the newest.
        """
        moment = _utc(as_of)
        wanted = (pl.col("user_id") == user_id) & (pl.col("timestamp") < moment)
        if as_ingested:
            wanted &= pl.col("ingested_at") <= moment
        found = self._collect(
            lambda frame: frame.filter(wanted), lambda file: file.first_time < _microseconds(moment)
        ).sort("timestamp", *ARRIVAL)
        return found if limit is None else found.tail(limit) if limit > 0 else found.clear()

    def point_in_time(
        self, labels: pl.DataFrame, *, as_ingested: bool = True, limit: int = MAX_HISTORY
    ) -> pl.DataFrame:
        """What was known of each label's user at the label's time.

        Args:
            labels: any columns, among them user_id (text) and timestamp (datetime; UTC unless it says otherwise).
            as_ingested: leave out events that the store did not have by the label's time. False for events that
                were imported long after they happened: then only the time of the event decides.
            limit: newest events of each history.

        Returns:
            `labels` in their order with two more columns, both lists with the oldest event first: `history` (item
            ids) and `history_times` (datetimes). Empty lists where nothing was known.

        Raises:
            ValueError: a column is missing or of another type.
        """
        if missing := [name for name in ("user_id", "timestamp") if name not in labels.columns]:
            raise ValueError(f"labels: column {missing[0]} is missing; there are {', '.join(labels.columns)}")
        if labels["user_id"].dtype != pl.String or not isinstance(labels["timestamp"].dtype, pl.Datetime):
            raise ValueError(
                "labels: user_id must be text and timestamp a datetime, got "
                f"{labels['user_id'].dtype} and {labels['timestamp'].dtype}"
            )
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        users = labels["user_id"].unique().implode()
        events = self._collect(lambda frame: frame.filter(pl.col("user_id").is_in(users))).sort("timestamp", *ARRIVAL)
        moments = labels.select(
            "user_id", moment=_in_utc(labels["timestamp"]), label=pl.int_range(pl.len(), dtype=pl.Int64)
        )
        pairs = moments.join(events.group_by("user_id").len(), on="user_id", how="left", maintain_order="left")["len"]
        chunk = pairs.fill_null(0).cum_sum() // _PAIRS_AT_ONCE
        chunks = moments.with_columns(chunk=chunk).partition_by("chunk", include_key=False)
        parts = [_histories(each, events, as_ingested, limit) for each in chunks]
        nothing = pl.DataFrame(schema={"history": _ITEMS, "history_times": _TIMES})
        return pl.concat([labels, pl.concat([nothing, *parts])], how="horizontal")

    def export(self, path: Path) -> int:
        """Write all events to one Parquet file, by user and time; how many. Its directory is made when missing.

        It is an interaction log for `data.source: files` as it is: user_id, item_id, event_type and timestamp
        have the names that are expected there, the other columns are not read.

        Raises:
            StoreConfigError: the file cannot be written, or there is no store.
        """
        events = self.events().sort("user_id", "timestamp", *ARRIVAL)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            events.write_parquet(temporary)
            temporary.replace(path)
        except OSError as error:
            raise StoreConfigError(f"store: cannot write {path}: {error}; name another file") from error
        return events.height

    def _collect(
        self,
        select: Callable[[pl.LazyFrame], pl.LazyFrame],
        is_wanted: Callable[[DataFile], bool] = lambda _: True,
        table: Table = "events",
    ) -> pl.DataFrame:
        """Apply `select` to a table of one state."""
        for attempt in range(_ATTEMPTS):
            manifest = self.manifest()
            paths = [self.directory / file.path for file in manifest.files_of(table) if is_wanted(file)]
            try:
                return without_erased(select(scan(paths, table)).collect(), manifest.tombstones)
            except FileNotFoundError:
                # Replaced meanwhile by a writer; the next state has what took its place.
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")


def scan(paths: Iterable[Path], table: Table = "events") -> pl.LazyFrame:
    """The rows of some files of one table; also of none. Columns that came after a file was written are null in it."""
    paths = list(paths)
    if not paths:
        return pl.LazyFrame(schema=SCHEMAS[table])
    return pl.scan_parquet(paths, schema=SCHEMAS[table], glob=False, hive_partitioning=False, missing_columns="insert")


def without_erased(events: pl.DataFrame, tombstones: Iterable[Tombstone]) -> pl.DataFrame:
    """The rows that no tombstone makes void; needs all columns."""
    tombstones = list(tombstones)
    if not tombstones or events.is_empty():
        return events
    shards = sorted({tombstone.shard for tombstone in tombstones})
    users = events.filter(pl.col("shard").is_in(shards))["user_id"].unique().to_list()
    digests = {digest_of(user): user for user in users}
    void = pl.lit(False)
    for tombstone in tombstones:
        user = digests.get(tombstone.digest)
        if user is not None:
            void |= (pl.col("user_id") == user) & _arrived_before(tombstone)
    return events.filter(~void)


def from_milliseconds(value: int) -> datetime:
    """A time that the log gives."""
    return datetime.fromtimestamp(value // 1000, UTC).replace(microsecond=value % 1000 * 1000)


def _arrived_before(tombstone: Tombstone) -> pl.Expr:
    milliseconds, sequence = tombstone.before
    moment = pl.lit(from_milliseconds(milliseconds), dtype=TIME)
    return (pl.col("ingested_at") < moment) | ((pl.col("ingested_at") == moment) & (pl.col("sequence") < sequence))


def _histories(moments: pl.DataFrame, events: pl.DataFrame, as_ingested: bool, limit: int) -> pl.DataFrame:
    """history and history_times, in the order of `moments`; `events` are in the order of a history."""
    known = pl.col("timestamp") < pl.col("moment")
    if as_ingested:
        known &= pl.col("ingested_at") <= pl.col("moment")
    found = (
        moments.lazy()
        .join(events.lazy().with_row_index("place"), on="user_id")
        .filter(known)
        .sort("place")
        .group_by("label", maintain_order=True)
        .agg(history=pl.col("item_id").tail(limit), history_times=pl.col("timestamp").tail(limit))
    )
    return (
        moments.lazy()
        .select("label")
        .join(found, on="label", how="left")
        .sort("label")
        .select(
            pl.col("history").fill_null(pl.lit([], dtype=_ITEMS)),
            pl.col("history_times").fill_null(pl.lit([], dtype=_TIMES)),
        )
        .collect()
    )


def _in_utc(times: pl.Series) -> pl.Series:
    kind = times.dtype
    assert isinstance(kind, pl.Datetime)
    zoned = times.dt.replace_time_zone("UTC") if kind.time_zone is None else times.dt.convert_time_zone("UTC")
    return zoned.cast(TIME)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _microseconds(moment: datetime) -> int:
    seconds = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (seconds.days * 86_400 + seconds.seconds) * 1_000_000 + seconds.microseconds
