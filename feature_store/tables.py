"""The columns of the offline store's tables, and the rows that entries of the event log become. Knows no files.

Both tables have user_id, timestamp (when it happened), ingested_at (when the store got it; both are datetimes in UTC
with microseconds), shard and sequence (with ingested_at: the place in the event log).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any, Literal

import polars as pl

from feature_store.events import LogEntry
from feature_store.slates import ServedSlate

Table = Literal["events", "slates"]

TIME = pl.Datetime("us", "UTC")
ARRIVAL = ("ingested_at", "shard", "sequence")
_PLACE: dict[str, pl.DataType] = {"ingested_at": TIME, "shard": pl.Int32(), "sequence": pl.Int64()}
_SLOT = pl.Struct({"item_id": pl.String(), "marginal": pl.Float64(), "conditional": pl.Float64()})
_EXPOSURE = pl.Struct({"experiment": pl.String(), "variant": pl.String(), "bucket": pl.Int32(), "forced": pl.Boolean()})

SCHEMAS: dict[Table, dict[str, pl.DataType]] = {
    "events": {
        "event_id": pl.String(),
        "user_id": pl.String(),
        "item_id": pl.String(),
        "event_type": pl.String(),
        "recommendation_id": pl.String(),
        "timestamp": TIME,
        **_PLACE,
    },
    "slates": {
        "request_id": pl.String(),
        "user_id": pl.String(),
        "timestamp": TIME,
        "history_hash": pl.String(),
        "profile_version": pl.Int64(),
        "policy": pl.String(),
        "model_version": pl.String(),
        "candidates_version": pl.String(),
        "slots": pl.List(_SLOT),
        "joint_log_propensity": pl.Float64(),
        "epsilon": pl.Float64(),
        "seed": pl.Int64(),
        "exposures": pl.List(_EXPOSURE),
        "schema_version": pl.Int32(),
        **_PLACE,
    },
}
KEYS: dict[Table, list[str]] = {
    "events": [*ARRIVAL, "user_id", "event_id"],
    "slates": [*ARRIVAL, "user_id", "request_id"],
}
"""Two rows with these in common are one."""


def rows_of(entries: Iterable[LogEntry], table: Table) -> pl.DataFrame:
    """The rows of a table that entries of the log become."""
    rows = []
    for entry in entries:
        record = entry.event if table == "events" else entry.slate
        if record is not None:
            milliseconds, sequence = entry.position
            place = {"ingested_at": milliseconds * 1000, "shard": entry.shard, "sequence": sequence}
            rows.append(asdict(record) | {"timestamp": round(record.timestamp * 1e6)} | place)
    schema = SCHEMAS[table]
    plain = {name: pl.Int64() if kind == TIME else kind for name, kind in schema.items()}
    return pl.DataFrame(rows, schema=plain).cast(pl.Schema(schema))


def slates_of(rows: pl.DataFrame) -> list[ServedSlate]:
    """The records of rows of the table `slates`.

    Raises:
        InvalidEventError: a row is none.
    """
    names = [field.name for field in fields(ServedSlate)]
    found = []
    for row in rows.select(names).iter_rows(named=True):
        values: dict[str, Any] = row | {"timestamp": row["timestamp"].timestamp()}
        found.append(ServedSlate.from_json(json.dumps(values)))
    return found
