"""Items and events of a file, sent to a running service in batches. Knows no command line and no server.

A row that is no item or event, or that the service refuses, is told of and keeps no other out. Sending a file again is
safe: an item is what was put last, and an event counts once under its id, which follows from the row where that has
none of its own. So whoever was interrupted starts again at the beginning.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import polars as pl
from pydantic import ValidationError

from recsys.errors import DataError
from serving.client import ApiError, Client, Event, EventsResult, NewItem

MOST_ROWS = 500
"""Of a batch."""
MOST_BYTES = 500_000
"""Of a batch, about; the service takes a megabyte unless it was told otherwise."""
_MAX_SECONDS = 20_000_000_000
"""The year 2603; larger numbers are milliseconds."""

RowT = TypeVar("RowT", NewItem, Event)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a file."""

    line: int
    """Of the text, from 1; of Parquet the row, from 1."""
    values: dict[str, Any] | None
    """By column; None for a line that cannot be read."""
    problem: str = ""
    """Why it cannot."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that is not in the service."""

    row: Row
    reason: str

    def to_json(self) -> str:
        """One line for whoever mends it."""
        return json.dumps({"line": self.row.line, "reason": self.reason, "row": self.row.values}, default=str)


def count_rows(path: Path) -> int:
    """About how many rows a file has.

    Raises:
        DataError: as `read_rows`.
    """
    kind = _kind(path)
    with _one_line_errors(path):
        if kind == ".parquet":
            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
        with _text(path) as text:
            return max(1, sum(1 for line in text if line.strip()) - (kind == ".csv"))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .parquet, .csv or .jsonl/.ndjson/.json file (one object a line); the last two also with .gz.

    Raises:
        DataError: the file is missing, of an unknown kind, or cannot be read at all.
    """
    kind = _kind(path)
    with _one_line_errors(path):
        if kind == ".parquet":
            for first, part in enumerate(pl.read_parquet(path).iter_slices(MOST_ROWS)):
                for place, values in enumerate(part.iter_rows(named=True), 1):
                    yield Row(line=first * MOST_ROWS + place, values=values)
            return
        with _text(path) as text:
            yield from _csv_rows(text) if kind == ".csv" else _json_rows(text)


def item_of(values: dict[str, Any], *, separator: str) -> NewItem:
    """The item of a row: `item_id`, `title`, `categories` (a list, or text with a separator), all else attributes.

    Raises:
        ValueError: a value is missing or nested; names it.
    """
    known = {name: value for name, value in values.items() if value is not None and value != ""}
    item_id = _required(known, "item_id")
    title = known.pop("title", None)
    categories = known.pop("categories", [])
    if isinstance(categories, str):
        categories = [part.strip() for part in categories.split(separator) if part.strip()]
    if not isinstance(categories, list):
        raise ValueError("categories: must be a list, or text")
    return NewItem(
        item_id=item_id,
        title=None if title is None else _as_text("title", title),
        categories=tuple(_as_text("categories", value) for value in categories),
        attributes={
            name: tuple(_as_text(name, one) for one in value) if isinstance(value, list) else _as_text(name, value)
            for name, value in known.items()
        },
    )


def event_of(values: dict[str, Any]) -> Event:
    """The event of a row: `user_id`, `item_id`, and `event_type`, `timestamp`, `event_id` where it has them.

    Without an `event_id`, rows that are alike in everything else are one event.

    Raises:
        ValueError: a value is missing, or is not what it should be; names it.
    """
    known = {name: value for name, value in values.items() if value is not None and value != ""}
    user_id, item_id = _required(known, "user_id"), _required(known, "item_id")
    event_type = _as_text("event_type", known.pop("event_type", "view"))
    moment = _moment(known.pop("timestamp", None))
    event_id = known.pop("event_id", None)
    if event_id is None:
        content = json.dumps([user_id, item_id, event_type, None if moment is None else moment.timestamp()])
        event_id = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Event(
        user_id=user_id,
        item_id=item_id,
        event_type=event_type,
        timestamp=moment,
        event_id=_as_text("event_id", event_id),
    )


def send(
    rows: Iterable[Row],
    parse: Callable[[dict[str, Any]], RowT],
    post: Callable[[Sequence[RowT]], tuple[Counter[str], dict[int, str]]],
    *,
    reject: Callable[[Rejected], None],
    advance: Callable[[int, str], None],
) -> Counter[str]:
    """Send all rows, batch by batch; how many had which outcome, `rejected` among them.

    Args:
        rows: of a file.
        parse: makes of a row what is sent; raises ValueError for one that is none.
        post: sends a batch: how many had which outcome, and the reasons of those that were refused, by place.
        reject: is told of each row that is not in the service.
        advance: is told how many rows are done, and a note.

    Raises:
        ClientError: the service does not answer, or refuses all calls; what was sent is in.
    """
    outcomes: Counter[str] = Counter()
    batch = _Batch[RowT]()

    def refuse(row: Row, reason: str) -> None:
        outcomes["rejected"] += 1
        reject(Rejected(row=row, reason=reason))

    def flush() -> None:
        nonlocal batch
        if not batch.rows:
            return
        counts, refused = _posted(batch.parsed, post)
        outcomes.update(counts)
        for place, reason in sorted(refused.items()):
            refuse(batch.rows[place], reason)
        rejected = outcomes["rejected"]
        advance(len(batch.rows), f"{rejected} rejected" if rejected else "")
        batch = _Batch[RowT]()

    for row in rows:
        if row.values is None:
            refuse(row, row.problem)
            advance(1, "")
            continue
        try:
            parsed = parse(row.values)
        except ValueError as error:
            refuse(row, _reason(error))
            advance(1, "")
            continue
        size = len(parsed.model_dump_json())
        name = parsed.event_id if isinstance(parsed, Event) else parsed.item_id
        # Answers name rows by their ids, so each of a batch has its own.
        if len(batch.rows) == MOST_ROWS or batch.size + size > MOST_BYTES or name in batch.names:
            flush()
        batch.rows.append(row)
        batch.parsed.append(parsed)
        batch.names.add(name)
        batch.size += size
    flush()
    return outcomes


def post_items(client: Client) -> Callable[[Sequence[NewItem]], tuple[Counter[str], dict[int, str]]]:
    """Sends batches of items."""

    def post(items: Sequence[NewItem]) -> tuple[Counter[str], dict[int, str]]:
        found = client.import_items(items)
        counts = Counter({"created": found.created, "changed": found.changed, "unchanged": found.unchanged})
        return counts, {one.line - 1: one.reason or "" for one in found.results if one.outcome == "rejected"}

    return post


def post_events(client: Client) -> Callable[[Sequence[Event]], tuple[Counter[str], dict[int, str]]]:
    """Sends batches of events."""

    def post(events: Sequence[Event]) -> tuple[Counter[str], dict[int, str]]:
        try:
            found = client.send_events(events)
        except ApiError as error:
            if "rejected" not in error.problem:
                raise
            found = EventsResult.model_validate(error.problem)
        reasons = {one.event_id: one.reason for one in found.rejected}
        refused = {place: reasons[one.event_id] for place, one in enumerate(events) if one.event_id in reasons}
        return Counter({"accepted": found.accepted, "duplicates": found.duplicates}), refused

    return post


def _posted(
    batch: Sequence[RowT], post: Callable[[Sequence[RowT]], tuple[Counter[str], dict[int, str]]]
) -> tuple[Counter[str], dict[int, str]]:
    """What became of a batch. One that is refused as a whole, for a row that is malformed, is sent in halves."""
    try:
        return post(batch)
    except ApiError as error:
        if error.status not in (413, 422):
            raise
        if len(batch) == 1:
            return Counter(), {0: str(error.problem.get("detail") or error)}
    middle = len(batch) // 2
    counts, refused = _posted(batch[:middle], post)
    others, further = _posted(batch[middle:], post)
    return counts + others, refused | {middle + place: reason for place, reason in further.items()}


@dataclass
class _Batch(Generic[RowT]):
    rows: list[Row] = field(default_factory=list)
    parsed: list[RowT] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    size: int = 0


def _kind(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")
    if kind not in (".parquet", ".csv", ".jsonl", ".ndjson", ".json"):
        raise DataError(f"{path}: unknown kind of table; use .parquet, .csv, .ndjson (the last two also .gz)")
    return kind


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def _text(path: Path) -> TextIO:
    """A byte that is no UTF-8 spoils its own line, which is then refused."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv_rows(text: TextIO) -> Iterator[Row]:
    reader = csv.DictReader(text, strict=True)
    for values in reader:
        if None in values or None in values.values():
            number = len(reader.fieldnames or ())
            yield Row(line=reader.line_num, values=None, problem=f"the line has not {number} values, as the first has")
        else:
            yield Row(line=reader.line_num, values=dict(values))


def _json_rows(text: TextIO) -> Iterator[Row]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(line=number, values=None, problem=f"no JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Row(line=number, values=values)
        else:
            yield Row(line=number, values=None, problem=f"must be an object, found {type(values).__name__}")


def _required(values: dict[str, Any], name: str) -> str:
    if name not in values:
        raise ValueError(f"{name}: has no value")
    return _as_text(name, values.pop(name))


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Numbers that stand beside a missing value often come with a decimal point.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float | date):
        raise ValueError(f"{name}: must be text or a number, found {type(value).__name__}")
    text = value.isoformat() if isinstance(value, date) else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: is not valid UTF-8 text") from error
    return text


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError(f"timestamp: must be seconds since 1970 UTC or ISO 8601, found {value!r}") from error
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
        raise ValueError(f"timestamp: must be seconds since 1970 UTC, found {value!r:.40}; divide milliseconds by 1000")
    return datetime.fromtimestamp(value, UTC)


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
