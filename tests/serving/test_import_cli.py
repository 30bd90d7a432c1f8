"""Files of every kind into a service, with rows that are none, and services that fail."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import typer
from guarded import Guarded, InProcess, guarded_app
from typer.testing import CliRunner, Result

from feature_store import OnlineStore
from recsys.errors import ConfigError, DataError
from serving.cli import app
from serving.client import Client, Retry
from serving.importing import event_of
from serving.runtime import RecommenderRuntime

Import = Callable[..., Result]


@pytest.fixture
def guarded(runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path) -> Iterator[Guarded]:
    with guarded_app(runtime, store, tmp_path) as guarded:
        yield guarded


@pytest.fixture
def transport(guarded: Guarded) -> list[httpx.BaseTransport]:
    """How requests travel; a test may put another one in."""
    return [InProcess(guarded.client)]


@pytest.fixture
def run(
    guarded: Guarded, transport: list[httpx.BaseTransport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Import:
    """The program, with the key of a writer."""
    (tmp_path / "key").write_text(guarded.keys["write"] + "\n")

    def client(url: str, key: str | None, **options: Any) -> Client:
        options["retry"] = Retry(attempts=3, first_s=0)
        return Client(url, key, transport=transport[0], **options)

    monkeypatch.setattr("serving.client.Client", client)

    def run(*arguments: object) -> Result:
        program = typer.Typer()
        program.command("other")(lambda: None)
        program.add_typer(app)
        given = ["import", *map(str, arguments)]
        if "--key-file" not in given:
            given += ["--key-file", str(tmp_path / "key")]
        return CliRunner().invoke(program, given)

    return run


def told(result: Result) -> str:
    """The last line on stdout: the service, which logs in the same process, has the ones before."""
    return result.stdout.splitlines()[-1]


ITEMS = [
    {"item_id": "i1", "title": "Renamed", "categories": ["even", "low"], "brand": "a"},
    {"item_id": "i2", "title": None, "categories": [], "brand": None},
]


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pl.DataFrame(rows, schema_overrides={"categories": pl.List(pl.String)}).write_parquet(path)


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [
        f"{row['item_id']},{row['title'] or ''},{'|'.join(row['categories'])},{row['brand'] or ''}" for row in rows
    ]
    path.write_text("\ufeffitem_id,title,categories,brand\n" + "\r\n".join(lines) + "\r\n")


def _ndjson(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt") as text:
        text.write("\n\n".join(json.dumps(row) for row in rows))


@pytest.mark.parametrize(("name", "write"), [("i.parquet", _parquet), ("i.csv", _csv), ("i.ndjson.gz", _ndjson)])
def test_items_of_every_kind_of_file(
    run: Import, guarded: Guarded, tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    write(tmp_path / name, ITEMS)
    first = run("items", tmp_path / name, "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(told(first)) == {"created": 0, "changed": 2, "unchanged": 0, "rejected": 0, "rejects": None}
    assert "items: 2/2" in first.stderr
    item = guarded.client.get("/v1/items/i1", headers=guarded.as_("read")).json()
    assert (item["title"], item["categories"], item["attributes"]) == ("Renamed", ["even", "low"], {"brand": "a"})
    again = run("items", tmp_path / name)
    assert told(again) == "items: 0 created, 0 changed, 2 unchanged, 0 rejected"


def test_rows_that_are_refused_are_named_and_keep_no_other_out(run: Import, tmp_path: Path) -> None:
    lines = [
        b'{"item_id": "i1", "title": "a", "brand": 3.0}',
        b"{",
        b'{"title": "nameless"}',
        b'{"item_id": "i2", "size": "L"}',
        b"[1]",
        b'{"item_id": "i3", "title": "\xff"}',
        b'{"item_id": "i4", "brand": {"name": "b"}}',
        b'{"item_id": "unheard of"}',
    ]
    (tmp_path / "items.ndjson").write_bytes(b"\n".join(lines))
    result = run("items", tmp_path / "items.ndjson")
    assert result.exit_code == 1
    rejects = tmp_path / "items.ndjson.rejects.ndjson"
    assert told(result) == f"items: 0 created, 1 changed, 0 unchanged, 7 rejected; see {rejects}"
    found = [json.loads(line) for line in rejects.read_text().splitlines()]
    reasons = {entry["line"]: entry["reason"] for entry in found}
    assert reasons[2].startswith("no JSON: ")
    assert reasons[3] == "item_id: has no value"
    assert reasons[4] == "attributes.size: the catalogue has no such column; it has brand"
    assert reasons[5] == "must be an object, found list"
    assert reasons[6] == "title: is not valid UTF-8 text"
    assert reasons[7] == "brand: must be text or a number, found dict"
    assert "takes no new ones" in reasons[8]
    assert next(entry["row"] for entry in found if entry["line"] == 4) == {"item_id": "i2", "size": "L"}
    (tmp_path / "items.ndjson").write_bytes(lines[0])
    assert run("items", tmp_path / "items.ndjson").exit_code == 0
    assert not rejects.exists(), "what is mended is not there any more"


def test_events_count_once_however_often_they_are_sent(run: Import, store: OnlineStore, tmp_path: Path) -> None:
    rows = [
        "user_id,item_id,event_type,timestamp",
        *(f"u{number % 7},i{number % 24},view,{1_700_000_000 + number}" for number in range(1200)),
        "u1,i1,view,1700000001",
        "u1,i1,,2026-01-01T00:00:00Z",
    ]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    result = run("events", tmp_path / "log.csv", "--json")
    assert json.loads(told(result)) == {"accepted": 1201, "duplicates": 1, "rejected": 0, "rejects": None}
    assert json.loads(told(run("events", tmp_path / "log.csv", "--json")))["duplicates"] == 1202
    newest = store.user_entries("u1", 1)[0]
    assert (newest.event_type, newest.timestamp) == ("view", datetime(2026, 1, 1, tzinfo=UTC).timestamp())


def test_events_that_are_refused_keep_no_other_out(run: Import, tmp_path: Path) -> None:
    rows = [
        {"user_id": "a", "item_id": "i1", "event_type": "no type!"},
        {"user_id": "a", "item_id": "unheard of"},
        {"user_id": "a", "item_id": "i1", "timestamp": 1_700_000_000_000},
        {"user_id": "a", "item_id": "i1", "timestamp": "yesterday"},
        {"user_id": "a"},
        {"user_id": "a", "item_id": "i2", "event_id": "mine"},
        {"user_id": "a", "item_id": "i3", "event_id": "mine"},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("events", tmp_path / "log.jsonl", "--rejects", tmp_path / "bad")
    assert result.exit_code == 1
    assert told(result).startswith("events: 1 accepted, 0 duplicates, 6 rejected")
    lines = [json.loads(line) for line in (tmp_path / "bad").read_text().splitlines()]
    reasons = {entry["line"]: entry["reason"] for entry in lines}
    assert "pattern" in reasons[1]
    assert reasons[2] == "item_id: the catalogue has no item 'unheard of'"
    assert reasons[3].endswith("divide milliseconds by 1000")
    assert reasons[4].startswith("timestamp: must be")
    assert reasons[5] == "item_id: has no value"
    assert "different event" in reasons[7]


def test_an_import_goes_on_after_a_failure_and_ends_after_many(
    run: Import, transport: list[httpx.BaseTransport], tmp_path: Path
) -> None:
    working, failures = transport[0], [2]

    def sometimes(request: httpx.Request) -> httpx.Response:
        if failures[0]:
            failures[0] -= 1
            raise httpx.ConnectError("refused")
        return working.handle_request(request)

    transport[0] = httpx.MockTransport(sometimes)
    (tmp_path / "log.csv").write_text("user_id,item_id\na,i1\n")
    assert told(run("events", tmp_path / "log.csv")) == "events: 1 accepted, 0 duplicates, 0 rejected"
    failures[0] = 3
    result = run("events", tmp_path / "log.csv")
    assert isinstance(result.exception, ConfigError)
    assert "start again to go on" in str(result.exception)


def test_files_and_keys_that_are_none_are_named(run: Import, tmp_path: Path) -> None:
    (tmp_path / "table.xlsx").write_text("")
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "short.csv").write_text("user_id,item_id\na\nb,i1\n")
    for file, said in (
        ("none.csv", "no such file"),
        ("table.xlsx", "unknown kind of table"),
        ("broken.parquet", "read"),
    ):
        result = run("items", tmp_path / file)
        assert isinstance(result.exception, DataError), result.output
        assert said in str(result.exception)
    assert told(run("events", tmp_path / "short.csv")).startswith("events: 1 accepted, 0 duplicates, 1 rejected")
    (tmp_path / "two").write_text("a b")
    for file, said in (("two", "one API key"), ("nowhere", "cannot be read")):
        result = run("events", tmp_path / "short.csv", "--key-file", tmp_path / file)
        assert said in str(result.exception)


def test_the_id_of_an_event_follows_from_its_row() -> None:
    row = {"user_id": 7, "item_id": 5.0, "timestamp": 1.5}
    assert event_of(dict(row)) == event_of(dict(row))
    assert event_of(dict(row)).item_id == "5"
    other = [row | {"user_id": "8"}, row | {"item_id": "6"}, row | {"timestamp": 2}, row | {"event_type": "buy"}]
    assert len({event_of(one).event_id for one in [row, *other]}) == 5
    assert event_of(row | {"event_id": "mine"}).event_id == "mine"
