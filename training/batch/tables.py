"""The table a job reads: Parquet anywhere, of which each shard reads its own rows. Knows no bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Table:
    """What was found by one pass over it."""

    source: str
    """What polars scans: a path, a pattern or a URL of Parquet files."""
    columns: tuple[str, ...]
    """Those that are read."""
    num_rows: int
    content: str
    """Names the content: a hash over the columns' rows in their order, by polars."""

    def read(self, first: int, count: int) -> pl.DataFrame:
        """At most `count` rows. Raises DataError when the files are damaged."""
        with _reading(self.source):
            return pl.scan_parquet(self.source).select(self.columns).slice(first, count).collect()


def open_table(place: str, columns: Sequence[str], one: str) -> Table:
    """The table, after one pass over it.

    Args:
        place: a file, a folder, a pattern, or a URL such as `s3://bucket/users/` (a folder ends with `/`).
        columns: that it must have; the first names what a row is about.
        one: what a row is about, such as "a user".

    Raises:
        DataError: it cannot be read, lacks a column, has no rows, or names something twice or not at all.
    """
    source, key = _pattern(place), columns[0]
    names = column_names(source)
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{source}: no column {missing[0]!r}; there are {', '.join(names)}, and needed are {', '.join(columns)}"
        )
    with _reading(source):
        row = (
            pl.scan_parquet(source)
            .select(columns)
            .with_row_index()
            .select(
                num_rows=pl.len(),
                distinct=pl.col(key).n_unique(),
                nameless=pl.col(key).null_count(),
                content=pl.struct(pl.all()).hash().sum(),
            )
            .collect(engine="streaming")
            .row(0, named=True)
        )
    num_rows = row["num_rows"]
    if not num_rows:
        raise DataError(f"{source}: the table has no rows")
    if row["nameless"]:
        raise DataError(f"{source}: column {key!r} has no value in {row['nameless']} of {num_rows} rows")
    if twice := num_rows - row["distinct"]:
        raise DataError(f"{source}: {twice} of {num_rows} rows name {one} again by {key!r}; keep one row for each")
    return Table(source=source, columns=tuple(columns), num_rows=num_rows, content=f"{row['content']:016x}")


def column_names(source: str) -> list[str]:
    """Of Parquet that polars scans. Raises DataError when it cannot be read."""
    with _reading(source):
        return pl.scan_parquet(source).collect_schema().names()


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        if "expanded paths were empty" in str(error):
            raise DataError(f"{source}: there is no such Parquet file") from error
        raise DataError(f"{source}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _pattern(place: str) -> str:
    """What polars scans, from anywhere; a folder's other files, such as a marker of success, are no part of it."""
    is_url = "://" in place
    is_folder = place.endswith("/") or (not is_url and Path(place).is_dir())
    root = place.rstrip("/") if is_url else str(Path(place).absolute())
    return f"{root}/**/*.parquet" if is_folder else root
