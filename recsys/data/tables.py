"""Reads Parquet, CSV and JSON-lines tables and casts their columns, with errors that point at rows.

Row numbers in messages count data rows from 1. Knows nothing about which columns a data set must have.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from recsys.errors import DataError

NUM_EXAMPLES = 3
_PIECE_ROWS = 1 << 20
_PIECE_BYTES = 1 << 20
_LEAST_FREE = 16 << 20
"""Bytes: a disk with less is full."""
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DATETIME_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f")
# Year 5138 in seconds, March 1973 in milliseconds: what is larger was not counted in seconds.
_LARGEST_SECONDS = 100_000_000_000


def read_table(path: Path) -> pl.DataFrame:
    """Read .parquet, .csv(.gz) or .jsonl/.ndjson/.json(.gz, one object a line). CSV columns all come as text.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, or malformed; names up to three bad lines.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kind = _kind(path)
    with _errors_of(path):
        if kind == "parquet":
            frame = pl.read_parquet(path)
        elif kind == "csv":
            frame = pl.read_csv(io.BytesIO(_content(path)), infer_schema=False)
        else:
            frame = _read_json_lines(path)
    if frame.is_empty():
        raise DataError(f"{path}: the table has no rows")
    return frame


@dataclass(frozen=True)
class OpenTable:
    """A table of which a few rows, or one column, are read at a time."""

    path: Path
    columns: list[str]
    """Their names."""
    stretches: list[tuple[int, int]]
    """First row and number of rows of what is read at once; none where the table is empty."""
    _frame: pl.LazyFrame
    """Of Parquet: the file itself, or what `opened` has made of it."""

    def read(self, columns: Iterable[str], first: int = 0, count: int | None = None) -> pl.DataFrame:
        """Some columns of some rows, by default all. Raises DataError when the file is damaged."""
        with _errors_of(self.path):
            return self._frame.select(list(dict.fromkeys(columns))).slice(first, count).collect()


@contextmanager
def opened(path: Path, scratch: Path) -> Iterator[OpenTable]:
    """What `read_table` reads, in stretches, for the time of the block. Text becomes Parquet in `scratch`, as it is
    read, so that no more than a stretch is in memory; but JSON with values that Parquet cannot hold is read at once.

    Raises:
        DataError: as for `read_table`, but a table without rows is none; or there is no room in `scratch`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if _kind(path) == "parquet":
        yield _open_parquet(path, path)
        return
    # Not after the file, whose name may be as long as names can be.
    plain, written = scratch / "table.txt", scratch / "table.parquet"
    try:
        text = path
        with _room_in(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".gz":
                _unpack(path, plain)
                text = plain
        with _errors_of(path):
            if _is_blank(text):
                raise DataError(f"{path}: the file is empty")
        yield _open_text(path, text, written)
    finally:
        for copy in (plain, written):
            with suppress(OSError):  # there is no such directory
                copy.unlink(missing_ok=True)


def _open_text(path: Path, text: Path, written: Path) -> OpenTable:
    """The table at `path`, whose text is in the file `text`, by way of the Parquet file `written`."""
    try:
        if _kind(path) == "csv":
            table = pl.scan_csv(text, infer_schema=False, glob=False)
        else:
            table = pl.scan_ndjson(glob.escape(str(text)), infer_schema_length=None)
        table.sink_parquet(written, compression="lz4")
        return _open_parquet(path, written)
    except (pl.exceptions.PolarsError, OSError, DataError) as error:
        if shutil.disk_usage(written.parent).free < _LEAST_FREE:
            raise _no_room(written.parent, error) from error
        # It is malformed, which this says better; or there is an empty object or a number above 64 bits in it.
        frame = read_table(path)
        return OpenTable(path, frame.columns, [(0, frame.height)], frame.lazy())


def _unpack(path: Path, plain: Path) -> None:
    with plain.open("wb") as file, _errors_of(path), gzip.open(path) as packed:
        while piece := packed.read(_PIECE_BYTES):
            with _room_in(plain.parent):
                file.write(piece)


def _is_blank(text: Path) -> bool:
    with text.open("rb") as file:
        return not any(piece.strip() for piece in iter(lambda: file.read(_PIECE_BYTES), b""))


@contextmanager
def _room_in(scratch: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _no_room(scratch, error) from error


def _no_room(scratch: Path, error: Exception) -> DataError:
    reason = str(error).strip().split("\n")[0]
    return DataError(f"{scratch}: a table could not be written there: {reason}; make room on that disk")


def _kind(path: Path) -> str:
    kind = [suffix for suffix in path.suffixes if suffix != ".gz"][-1:]
    found = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
    if not kind or kind[0] not in found:
        raise DataError(f"{path}: unknown kind of table; use .parquet, .csv, .jsonl (the last two also .gz)")
    return found[kind[0]]


def _open_parquet(path: Path, file: Path) -> OpenTable:
    with _errors_of(path):
        lazy = pl.scan_parquet(file, glob=False, hive_partitioning=False)
        columns = lazy.collect_schema().names()
        groups = parquet.read_metadata(file)
    # Whole row groups: of one that is divided all has to be read for each part.
    stretches, first, count = [], 0, 0
    for number in range(groups.num_row_groups):
        count += groups.row_group(number).num_rows
        if count >= _PIECE_ROWS or (count and number == groups.num_row_groups - 1):
            stretches.append((first, count))
            first, count = first + count, 0
    return OpenTable(path, columns, stretches, lazy)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: cannot be read as {path.suffix.lstrip('.')}: {reason}") from error


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    if not content.strip():
        raise DataError(f"{path}: the file is empty")
    return content


def _read_json_lines(path: Path) -> pl.DataFrame:
    content = _content(path)
    try:
        return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)
    except pl.exceptions.PolarsError:
        raise_bad_lines(path.name, content, _json_object)
        raise


def raise_bad_lines(name: str, content: bytes, parse: Callable[[bytes], object], first_line: int = 1) -> None:
    """Raise a DataError that names the lines for which `parse` raises ValueError; return if there are
    none."""
    bad = []
    lines = content.splitlines()
    for number, line in enumerate(lines, start=first_line):
        if line.strip():
            try:
                parse(line)
            except ValueError as error:
                bad.append(f"line {number}: {error}")
    if bad:
        raise DataError(f"{name}: {len(bad)} of {len(lines)} lines are malformed, e.g. {'; '.join(bad[:NUM_EXAMPLES])}")


def _json_object(line: bytes) -> object:
    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    value = json.loads(line, parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def raise_bad_rows(table: str, column: pl.Series, bad: pl.Series, problem: str) -> None:
    """Raise a DataError with counts and examples if any row of the boolean `bad` is true."""
    if not bad.any():
        return
    rows = bad.arg_true()
    examples = ", ".join(f"row {row + 1}: {column[row]!r}" for row in rows.head(NUM_EXAMPLES).to_list())
    raise DataError(f"{table}: column {column.name!r} {problem} in {len(rows)} of {len(column)} rows, e.g. {examples}")


def as_ids(column: pl.Series, table: str) -> pl.Series:
    """String ids. Whole numbers lose a decimal point that a missing value elsewhere may have given them."""
    raise_bad_rows(table, column, column.is_null(), "has no value")
    if column.dtype.is_float():
        raise_bad_rows(table, column, ~column.is_finite() | (column != column.round()), "is not a whole number")
        rounded = column.abs() >= (1 << (24 if column.dtype == pl.Float32 else 53))
        raise_bad_rows(
            table, column, rounded, "has lost digits as a decimal number (write it as a whole one or as text)"
        )
        column = column.cast(pl.Int64)
    if not (column.dtype == pl.String or column.dtype.is_integer() or column.dtype in (pl.Categorical, pl.Enum)):
        raise DataError(f"{table}: column {column.name!r} must hold text or whole numbers, found {column.dtype}")
    ids = column.cast(pl.String)
    raise_bad_rows(table, column, ids.str.strip_chars() == "", "is blank")
    return ids


def as_text(column: pl.Series, table: str) -> pl.Series:
    """String, stripped; null where blank. Numbers, dates and booleans are written out."""
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise DataError(f"{table}: column {column.name!r} must hold text, found {column.dtype}")
    text = column.cast(pl.String).str.strip_chars()
    return text.to_frame().select(pl.when(pl.col(text.name) != "").then(pl.col(text.name))).to_series()


def as_text_list(column: pl.Series, table: str, separator: str) -> pl.Series:
    """List[String] without blanks and nulls; empty where unknown. Text is divided at `separator`."""
    if column.dtype == pl.List(pl.Null) or column.dtype == pl.Null:
        return pl.Series(column.name, [[]] * len(column), dtype=pl.List(pl.String))
    if isinstance(column.dtype, pl.List) and not column.dtype.inner.is_nested():
        lists = column.cast(pl.List(pl.String))
    elif not column.dtype.is_nested():
        lists = as_text(column, table).str.split(separator)
    else:
        raise DataError(f"{table}: column {column.name!r} must hold text or lists of text, found {column.dtype}")
    stripped = lists.fill_null([]).list.eval(pl.element().str.strip_chars())
    return stripped.list.eval(pl.element().filter(pl.element().is_not_null() & (pl.element() != "")))


def as_number(column: pl.Series, table: str) -> pl.Series:
    """Float64; null where blank or NaN (a missing value in many tools)."""
    if column.dtype == pl.String:
        column = as_text(column, table)
    elif not column.dtype.is_numeric() and column.dtype != pl.Null:
        raise DataError(f"{table}: column {column.name!r} must hold numbers, found {column.dtype}")
    numbers = column.cast(pl.Float64, strict=False)
    raise_bad_rows(table, column, numbers.is_null() & column.is_not_null(), "is not a number")
    return numbers.fill_nan(None)


def as_whole_number(column: pl.Series, table: str) -> pl.Series:
    """Int64 without nulls."""
    if column.dtype.is_integer():
        numbers = column.cast(pl.Int64, strict=False)
    else:
        exact = as_number(column, table)
        raise_bad_rows(table, column, exact.fill_null(0) != exact.fill_null(0).round(), "is not a whole number")
        numbers = exact.cast(pl.Int64, strict=False)
    raise_bad_rows(table, column, numbers.is_null(), "has no value")
    return numbers


def as_timestamp(column: pl.Series, table: str, unit: str) -> pl.Series:
    """Int64 seconds UTC without nulls, from numbers in `unit`, dates, datetimes or ISO 8601 text."""
    if column.dtype == pl.String:
        text = as_text(column, table)
        raise_bad_rows(table, column, text.is_null(), "has no value")
        if holds_numbers(text):
            return as_timestamp(as_number(column, table), table, unit)
        parsed = _parse_datetimes(text)
        raise_bad_rows(table, column, parsed.is_null(), "is neither a number nor an ISO 8601 time")
        return parsed
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        raise_bad_rows(table, column, column.is_null(), "has no value")
        return column.cast(pl.Datetime("us")).dt.epoch("s").cast(pl.Int64)
    if not column.dtype.is_numeric():
        raise DataError(f"{table}: column {column.name!r} must hold times or numbers, found {column.dtype}")
    raise_bad_rows(table, column, column.is_null(), "has no value")
    if column.dtype.is_float():
        raise_bad_rows(table, column, ~column.is_finite(), "is NaN or infinite")
        seconds = (column / (10**9 // _NANOSECONDS[unit])).floor().cast(pl.Int64, strict=False)
    else:
        seconds = column.cast(pl.Int64, strict=False) // (10**9 // _NANOSECONDS[unit])
    raise_bad_rows(
        table,
        column,
        seconds.is_null() | (seconds.abs() > _LARGEST_SECONDS),
        f"lies beyond the year 5000 when read in {unit!r} (set timestamp_unit: ms, us or ns?)",
    )
    return seconds


def holds_numbers(text: pl.Series) -> bool:
    """Whether any of these texts is a number."""
    return text.str.strip_chars().cast(pl.Float64, strict=False).null_count() < len(text)


def _parse_datetimes(text: pl.Series) -> pl.Series:
    name = pl.col(text.name)
    zoned = name.str.to_datetime("%+", strict=False, time_zone="UTC").dt.replace_time_zone(None)
    plain = [name.str.to_datetime(format_, strict=False) for format_ in _DATETIME_FORMATS]
    date = name.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    return text.to_frame().select(pl.coalesce(zoned, *plain, date).dt.epoch("s")).to_series()
