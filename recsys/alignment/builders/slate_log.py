"""A log of slates as a file: one row a slate, over the source's own ids of users and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.alignment.builders.slates import ObservedSlate
from recsys.data.tables import read_table
from recsys.errors import DataError

_REQUIRED: dict[str, pl.DataType] = {
    "slate_id": pl.String(),
    "user_id": pl.String(),
    "history": pl.List(pl.String()),
    "items": pl.List(pl.String()),
    "outcomes": pl.List(pl.String()),
}
_OPTIONAL: dict[str, pl.DataType] = {
    "second_page_view": pl.Boolean(),
    "examined": pl.List(pl.Float64()),
    "propensities": pl.List(pl.Float64()),
    "created_by": pl.String(),
}


@dataclass(frozen=True, kw_only=True)
class ObservedSlates:
    """The slates that may be learned from."""

    slates: Sequence[ObservedSlate]
    """Over dense item indices."""
    left_out: int
    """Slates with an item that the catalogue does not have, or that know what came after training."""


def read_slates(
    path: Path, item_index: Mapping[str, int], secrets: Mapping[str, frozenset[int]] | None = None
) -> ObservedSlates:
    """Read a Parquet or JSON-lines file.

    Columns `slate_id`, `user_id`, `history` and `items` (lists of item ids) and `outcomes` (of buy, cart, click, skip);
    optional `second_page_view`, `examined`, `propensities` and `created_by`: see `ObservedSlate`.

    Args:
        path: the file.
        item_index: the dense index of each item id.
        secrets: by user id, the items that came after training (validation and test targets, and what is between).
            Slates with one of them in the history, or with feedback on one, are left out. The log has no times: of a
            log that goes on after the moment that divides training from test, leave the end out yourself.

    Raises:
        DataError: the file cannot be read, a column is missing or of another type, or a slate is impossible.
    """
    frame = _typed(path, read_table(path))
    slates = []
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        asked = frozenset() if secrets is None else secrets.get(row["user_id"], frozenset())
        history = [item_index.get(item, -1) for item in row.pop("history")]
        items = [item_index.get(item, -1) for item in row.pop("items")]
        known = {name: value for name, value in row.items() if value is not None}
        if -1 in history or -1 in items:
            continue
        try:
            slate = ObservedSlate(history=history, items=items, **known)
        except ValueError as error:
            raise DataError(f"{path}: row {number}: {error}") from error
        touched = {item for item, outcome in zip(items, slate.outcomes, strict=True) if outcome != "skip"}
        if not asked & {*history, *touched}:
            slates.append(slate)
    return ObservedSlates(slates=slates, left_out=len(frame) - len(slates))


def _typed(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    if missing := [name for name in _REQUIRED if name not in frame.columns]:
        raise DataError(f"{path}: no column {missing[0]!r}; a log of slates has {', '.join(_REQUIRED)}")
    wanted = {name: dtype for name, dtype in {**_REQUIRED, **_OPTIONAL}.items() if name in frame.columns}
    try:
        frame = frame.select(pl.col(name).cast(dtype) for name, dtype in wanted.items())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}; the columns are to be {wanted}") from error
    for name in _REQUIRED:
        if empty := frame[name].null_count():
            raise DataError(f"{path}: column {name!r} has no value in {empty} of {len(frame)} rows")
    return frame
